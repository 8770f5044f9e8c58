// Version of the library. The build reads its version from these three lines, so that there is one place to change.
#pragma once

#define SEQMIX_VERSION_MAJOR 0
#define SEQMIX_VERSION_MINOR 1
#define SEQMIX_VERSION_PATCH 0
