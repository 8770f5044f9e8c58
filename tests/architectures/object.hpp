#pragma once

#include <array>

/// What one object computes. A plain aggregate: no function of it could be shared between the objects.
struct Outcome {
  const char* instruction_set = nullptr;
  int lanes = 0;
  std::array<float, 512> values{};
};

Outcome baseline();
Outcome v2();
Outcome v3();
Outcome native();
