#pragma once

#include <seqmix/core/workspace.hpp>

/// What one object says of itself.
struct Outcome {
  const char* instruction_set = nullptr;
  int lanes = 0;
};

/// Each object's own code runs the same mixer over x, on views and a workspace that come from elsewhere.
using Run = Outcome(seqmix::Sequence<const float> x, seqmix::Sequence<float> y, seqmix::Workspace& workspace);

Run baseline, v2, v3, native;
