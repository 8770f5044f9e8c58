#include "support/instantiations.hpp"

SEQMIX_TEST_RECURRENCES_CONSTANT(template, float)
