#include "instantiations.hpp"

SEQMIX_TEST_PIECES(template, float)
SEQMIX_TEST_PIECES(template, double)
