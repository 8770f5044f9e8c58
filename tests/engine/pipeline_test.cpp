// Pipelines: the order of their stages.
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <seqmix/engine/pipeline.hpp>
#include <vector>

#include "support/executors.hpp"

namespace seqmix::test {
namespace {

TEST_CASE("a pipeline runs every stage of a tile once, after what it needs", "[pipeline]") {
  for (const auto& [name, executor] : all_executors()) {
    Workspace workspace(*executor);
    for (const Index lines : {0, 1, 3}) {
      for (const Index stages : {1, 2, 5}) {
        for (const Index tiles : {0, 1, 2, 7}) {
          INFO(name << ", " << lines << " lines, " << stages << " stages, " << tiles << " tiles");
          std::vector<std::atomic<int>> done(std::size_t(lines * stages * tiles));
          std::atomic<int> early = 0;
          const auto at = [&](Index line, Index stage, Index tile) -> std::atomic<int>& {
            return done[std::size_t((line * stages + stage) * tiles + tile)];
          };
          run_pipeline(lines, stages, tiles, workspace, [&](Index line, Index stage, Index tile, Workspace&) {
            if (stage > 0 && at(line, stage - 1, tile) != 1) ++early;
            if (tile > 0 && at(line, stage, tile - 1) != 1) ++early;
            // Numbers on their way between stages have room for as many tiles as there are stages.
            if (tile >= stages && at(line, stages - 1, tile - stages) != 1) ++early;
            ++at(line, stage, tile);
          });
          CHECK(early == 0);
          for (const auto& times : done) CHECK(times == 1);
        }
      }
    }
  }
}

TEST_CASE("a pipeline has no more stages than keep the workers busy", "[pipeline]") {
  CHECK(pipeline_stages(1, 10, 1) == 1);
  CHECK(pipeline_stages(1, 10, 2) == 2);
  CHECK(pipeline_stages(2, 10, 2) == 1);
  CHECK(pipeline_stages(3, 10, 2) == 2);
  CHECK(pipeline_stages(96, 10, 2) == 1);
  CHECK(pipeline_stages(1, 10, 8) == 7);
  CHECK(pipeline_stages(1, 3, 8) == 3);
  CHECK(pipeline_stages(1, 0, 8) == 1);
}

}  // namespace
}  // namespace seqmix::test
