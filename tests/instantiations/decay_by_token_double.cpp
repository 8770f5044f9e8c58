#include "support/instantiations.hpp"

SEQMIX_TEST_RECURRENCES_BY_TOKEN(template, double)
