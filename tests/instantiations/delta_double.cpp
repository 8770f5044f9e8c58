#include "support/instantiations.hpp"

SEQMIX_TEST_RECURRENCES_DELTA(template, double)
