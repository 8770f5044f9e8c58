// Whether a function makes system calls.
#pragma once

#include <utility>

#include "sanitizers.hpp"

#if defined(__linux__) && !defined(SEQMIX_TEST_SANITIZED)
#define SEQMIX_TEST_SECCOMP
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace seqmix::test {

/// Calls `call` in a child process that the kernel ends at its first system call. Always true where this can't be told:
/// elsewhere than on Linux, under sanitizers, and where the kernel refuses.
template <class Call>
bool makes_no_system_call(Call call) {
#ifdef SEQMIX_TEST_SECCOMP
  const pid_t child = fork();
  if (child < 0) return true;
  if (child == 0) {
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) syscall(SYS_exit, 0);
    call();
    syscall(SYS_exit, 0);  // the one way out that is allowed
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status);
#else
  (void)call;
  return true;
#endif
}

}  // namespace seqmix::test
