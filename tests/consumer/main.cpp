#include <seqmix/recurrent/retention.hpp>

int main() {
  using Mixer = seqmix::Retention<float>;
  const Mixer::Config config{.channels = 64, .heads = 4};
  seqmix::Rng rng(1);
  const Mixer mixer(config, Mixer::random_weights(config, rng));
  const seqmix::Matrix<float> x = seqmix::Matrix<float>::Constant(100, 64, 0.5F);
  seqmix::Matrix<float> y(100, 64);
  seqmix::Workspace workspace;
  mixer.forward(x, y, workspace);
  return y.allFinite() && !y.isZero() ? 0 : 1;
}
