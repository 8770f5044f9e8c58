#include "support/instantiations.hpp"

SEQMIX_TEST_PIECES(template, double)
