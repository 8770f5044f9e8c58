// Every golden file below tests/golden, and below each directory named in SEQMIX_GOLDEN (colon-separated).
#include "support/golden.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <sstream>

namespace seqmix::test {
namespace {

// Operators that have golden files but are not built yet. Their files are counted, not run.
const std::set<std::string> pending = {
    "bigbird",
    "combiner",
    "compressive_transformer",
    "forgetting_attention",
    "linformer",
    "longformer",
    "mega",
    "moba",
    "multi_head_latent_attention",
    "native_sparse_attention",
    "nystrom_attention",
    "recurrent_memory",
    "reformer",
    "retrieval_knn",
    "retro",
    "routing",
    "sparse_transformer",
    "transformer_xl",
};

std::vector<std::string> all_files() {
  std::vector<std::string> files = golden_files(SEQMIX_GOLDEN_DIRECTORY);
  if (const char* more = std::getenv("SEQMIX_GOLDEN")) {
    std::istringstream directories(more);
    for (std::string directory; std::getline(directories, directory, ':');) {
      if (directory.empty()) continue;
      const auto found = golden_files(directory);
      files.insert(files.end(), found.begin(), found.end());
    }
  }
  return files;
}

TEST_CASE("golden cases") {
  std::map<std::string, int> pending_files;
  int checked = 0, failed = 0;
  for (const auto& file : all_files()) {
    const std::string operator_id = golden_operator(file);
    if (pending.contains(operator_id)) {
      ++pending_files[operator_id];
      continue;
    }
#ifdef SEQMIX_SOME_OPERATORS
    const auto& built = golden_registry();
    const auto built_here = [&](const auto& entry) { return entry.operator_id == operator_id; };
    if (std::none_of(built.begin(), built.end(), built_here)) continue;
#endif
    ++checked;
    const std::string failure = check_golden_case(file);
    if (failure.empty()) continue;
    ++failed;
    std::printf("%s: %s\n", file.c_str(), failure.c_str());
  }
  std::printf("golden: %d files checked, %d failed\n", checked, failed);
  if (!pending_files.empty()) {
    std::printf("golden: pending, not built yet:");
    for (const auto& [operator_id, count] : pending_files) std::printf(" %s (%d)", operator_id.c_str(), count);
    std::printf("\n");
  }
#ifndef SEQMIX_SOME_OPERATORS
  CHECK(checked > 0);
#endif
  CHECK(failed == 0);
}

TEST_CASE("no operator is both pending and built") {
  for (const auto& entry : golden_registry()) {
    INFO(entry.operator_id);
    CHECK_FALSE(pending.contains(entry.operator_id));
  }
}

TEST_CASE("every operator and level has one adapter") {
  std::set<std::string> seen;
  for (const auto& entry : golden_registry()) {
    INFO(entry.operator_id << ", " << entry.level);
    CHECK(seen.insert(entry.operator_id + "/" + entry.level).second);
  }
}

}  // namespace
}  // namespace seqmix::test
