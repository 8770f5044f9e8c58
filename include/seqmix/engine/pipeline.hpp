// Pipelines: what passes over tokens in an order of its own, cut into stages that run side by side.
//
// A stage takes some of the states of a recurrence, and adds to the outputs of a tile of tokens what its states say of them;
// then the tile is the next stage's, while this one is at the tile after it. Numbers are added up in the order in which a single
// stage would add them: results have the same bits for any number of stages, which may depend on that of the threads.
#pragma once

#include <algorithm>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/arch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Into how many stages, at most `most`, each of `lines` independent pipelines is cut for so many workers: as few as leave no
/// more than an eighth of them idle.
inline Index pipeline_stages(Index lines, Index most, Index workers) {
  Index best = 1;
  double best_share = 0;
  for (Index stages = 1; stages <= most; ++stages) {
    const Index pieces = lines * stages, rounds = (pieces + workers - 1) / workers;
    const double share = double(pieces) / double(rounds * workers);
    if (share > best_share) best = stages, best_share = share;
    if (share >= 0.875) break;
  }
  return best;
}

/// Calls body(line, stage, tile, local) once for each of the tiles of each stage of each line: stage s of a tile after its stage
/// s - 1 and after stage s of the tile before. Of a line, stages are at tiles that are neighbours at the same time.
template <class Body>
void run_pipeline(Index lines, Index stages, Index tiles, Workspace& workspace, Body&& body) {
  for (Index round = 0; round < tiles + stages - 1; ++round) {
    const Index first = std::max<Index>(round - tiles + 1, 0), last = std::min(round, stages - 1);
    const Index active = last - first + 1;
    workspace.parallel_for(lines * active, [&](Index piece, Workspace& local) {
      const Index stage = first + piece % active;
      body(piece / active, stage, round - stage, local);
    });
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
