// Which sanitizers this is compiled with.
#pragma once

#if defined(__SANITIZE_THREAD__)
#define SEQMIX_TEST_THREAD_SANITIZER
#elif defined(__SANITIZE_ADDRESS__)
#define SEQMIX_TEST_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SEQMIX_TEST_THREAD_SANITIZER
#elif __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define SEQMIX_TEST_ADDRESS_SANITIZER
#endif
#endif

#if defined(SEQMIX_TEST_THREAD_SANITIZER) || defined(SEQMIX_TEST_ADDRESS_SANITIZER)
#define SEQMIX_TEST_SANITIZED
#endif
