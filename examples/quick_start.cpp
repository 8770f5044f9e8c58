// The example of the README: a mixer over a whole sequence, and the same numbers token by token.
#include <cstdio>
// README begins
#include <seqmix/recurrent/retention.hpp>

int main() {
  using namespace seqmix;
  Rng rng(1);
  const Retention<float>::Config config{.channels = 256, .heads = 4};
  const Retention<float> mixer(config, Retention<float>::random_weights(config, rng));

  const Matrix<float> x = normal_matrix<float>(1000, 256, 1.0, rng);  // [length, channels]
  Matrix<float> y(1000, 256), z(1000, 256);
  Workspace workspace;
  mixer.forward(x, y, workspace);  // all tokens at once

  auto state = mixer.initial_state();
  mixer.prefill(state, x.topRows(600), z.topRows(600), workspace);                      // a piece ...
  for (Index t = 600; t < 1000; ++t) mixer.step(state, x.row(t), z.row(t), workspace);  // ... then one by one
  // README ends

  const float difference = (y - z).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
  std::printf("largest difference between the two ways: %.1e of the largest value\n", double(difference));
  return difference < 1e-4f ? 0 : 1;
}
