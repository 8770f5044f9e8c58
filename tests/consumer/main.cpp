#include <seqmix/core/workspace.hpp>
#include <seqmix/version.hpp>

int main() {
  seqmix::Workspace workspace;
  const auto frame = workspace.frame();
  const auto x = workspace.sequence<float>(16, 64);
  return x.length() == 16 && x.channels() == 64 ? 0 : 1;
}
