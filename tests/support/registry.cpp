#include "registry.hpp"

namespace seqmix::test {

std::vector<MixerEntry>& mixer_registry() {
  static std::vector<MixerEntry> entries;
  return entries;
}

template <class T>
MixerCase<T> MixerEntry::make(Index configuration) const {
  const std::shared_ptr<MixerSetup> made = setup(configuration);
  for (const NamedTensor& weight : made->weights()) {
    weight.tensor.assign(weight.tensor.values().template cast<T>().template cast<double>());
  }
  MixerCase<T> result;
  result.configuration = made->configuration();
  if constexpr (std::same_as<T, float>) {
    result.mixer = made->make_float();
  } else {
    result.mixer = made->make_double();
  }
  if (made->has_reference()) result.reference = [made](const Matrix<double>& x) { return made->reference(x); };
  if (const std::shared_ptr<AnyMixer<double>> exact = made->make_double()) {
    result.exact = [exact](const Matrix<double>& x) {
      Workspace workspace;
      Matrix<double> y(x.rows(), x.cols());
      exact->forward(x, y, workspace);
      return y;
    };
  } else {
    result.exact = result.reference;
  }
  return result;
}

template MixerCase<float> MixerEntry::make<float>(Index) const;
template MixerCase<double> MixerEntry::make<double>(Index) const;

}  // namespace seqmix::test
