#include "support/mixers.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include "support/data.hpp"

namespace seqmix::bench {
namespace {

/// One registered mixer.
struct Entry {
  std::string name;
  Index channels;
  StateGrowth growth;
  MixerTraits traits;
  std::function<std::unique_ptr<Layer>()> make;
};
using EntryPointer = std::shared_ptr<const Entry>;

/// The largest difference, relative to the largest number, that two ways through a mixer may show: float rounding after
/// thousands of tokens, far below what any mistake would show.
constexpr double tolerance = 2e-4;

/// The layer of `entry`. The last one made is kept: benchmarks of a mixer follow each other.
std::shared_ptr<const Layer> layer_of(const EntryPointer& entry) {
  static EntryPointer last;
  static std::shared_ptr<const Layer> layer;
  if (last != entry) {
    layer = nullptr;
    layer = entry->make();
    last = entry;
  }
  return layer;
}

/// At least `length` rows of what all mixers of so many channels are given; more of them begin with the same. Making them
/// takes longer than many a benchmark, so the last are kept.
std::shared_ptr<const Tensor> input_of(Index length, Index channels) {
  static std::map<Index, std::shared_ptr<const Tensor>> inputs;
  auto& input = inputs[channels];
  if (!input || input->flat().length() < length) {
    Rng rng(11);
    input = std::make_shared<const Tensor>(length, 1, channels, -1.7, 1.7, rng);
  }
  return input;
}

/// What a benchmark of a layer works on.
struct Data {
  Data(const EntryPointer& of, Index length, int threads)
      : entry(of),
        layer(layer_of(of)),
        workspace(executor(threads)),
        input(input_of(length, of->channels)),
        x(input->flat().rows(0, length)),
        y(length, 1, of->channels) {}

  EntryPointer entry;
  std::shared_ptr<const Layer> layer;
  Workspace workspace;
  std::shared_ptr<const Tensor> input;
  Sequence<const float> x;
  Tensor y;
  Layer::State state;
};

/// Steps over `count` rows of x from `begin` on, and compares with the rows that `y` has there.
void compare_with_steps(const Layer& layer, const Layer::State& state, Sequence<const float> x, Sequence<const float> y,
                        Index begin, Index count, const char* what) {
  Workspace workspace;
  Tensor stepped(1, 1, x.channels());
  Comparison comparison;
  for (Index t = begin; t < begin + count; ++t) {
    layer.step(state, Token<const float>(x.row(t), x.channels()), Token<float>(stepped.flat().row(0), x.channels()),
               workspace);
    comparison.add(stepped.flat().row(0), y.row(t), x.channels());
  }
  comparison.expect_within(tolerance, what);
}

/// Compares all of y = forward(x) with steps over its first rows and, unless that would take too long, its last.
void check_sequence(const Layer& layer, Sequence<const float> input, Sequence<const float> output) {
  expect_finite(output, "the output");
  if (!layer.recurrent()) return;
  const Index length = input.length();
  compare_with_steps(layer, layer.initial_state(), input, output, 0, std::min<Index>(length, 16),
                     "stepping at the start");
  if (length > 16 && length <= 2048) {
    Workspace workspace(executor(thread_counts().back()));
    const auto state = layer.initial_state();
    Tensor scratch(length - 8, 1, input.channels());
    layer.prefill(state, input.rows(0, length - 8), scratch.flat(), workspace);
    compare_with_steps(layer, state, input, output, length - 8, 8, "stepping at the end");
  }
}

/// Parameters that every token is multiplied with.
Index projected(const Data& data) { return data.layer->parameters() - data.entry->traits.filters; }

Work projections(const Data& data, Index length) { return {.flops = 2 * double(projected(data)) * double(length)}; }

Case sequence(const EntryPointer& entry, Index length, int threads, bool with_state) {
  const auto data = std::make_shared<Data>(entry, length, threads);
  Case result;
  if (with_state) {
    result.prepare = [data] { data->state = data->layer->initial_state(); };
    result.run = [data] { data->layer->prefill(data->state, data->x, data->y.flat(), data->workspace); };
  } else {
    result.run = [data] { data->layer->forward(data->x, data->y.flat(), data->workspace); };
  }
  result.check = [data] { check_sequence(*data->layer, data->x, data->y.flat()); };
  result.work = projections(*data, length);
  if (entry->traits.core) {
    const Work core = entry->traits.core(length);
    result.work += Work{.flops = core.flops, .exps = core.exps};
  }
  // What lies between the projections need not leave the caches.
  result.work.streamed_bytes = 4.0 * double(2 * length * entry->channels + projected(*data));
  result.tokens = length;
  result.state_bytes = data->layer->recurrent() ? data->layer->state_bytes(data->layer->initial_state()) : 0;
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

/// The state after `context` tokens. The last one made is kept for the other numbers of threads.
Layer::State state_after(const EntryPointer& entry, Index context) {
  static std::tuple<EntryPointer, Index> last;
  static Layer::State state;
  if (last != std::tuple(entry, context)) {
    state = nullptr;
    Data data(entry, context, thread_counts().back());
    state = data.layer->initial_state();
    data.layer->prefill(state, data.x, data.y.flat(), data.workspace);
    last = {entry, context};
  }
  return state;
}

Case next_token(const EntryPointer& entry, Index context, int threads) {
  constexpr Index rows = 16;
  const auto data = std::make_shared<Data>(entry, rows, threads);
  const auto saved = state_after(entry, context);
  const auto& layer = *data->layer;
  // States that grow are renewed before they have grown by more than a thirty-second.
  const bool grows = entry->growth != StateGrowth::constant;
  const Index steps_per_copy = grows ? std::max<Index>(8, context / 32) : PTRDIFF_MAX;
  const auto steps = std::make_shared<Index>(steps_per_copy);
  const auto row = [data](Index t) { return Token<const float>(data->x.row(t % rows), data->x.channels()); };
  const auto output = [data] { return Token<float>(data->y.flat().row(0), data->y.flat().channels()); };

  Case result;
  result.prepare = [=, &layer] {
    if (*steps < steps_per_copy) return;
    data->state = layer.copy(saved);
    if (grows) layer.reserve(data->state, context + steps_per_copy + 1);
    layer.step(data->state, row(0), output(), data->workspace);
    *steps = 0;
  };
  result.run = [=, &layer] { layer.step(data->state, row(++*steps), output(), data->workspace); };
  result.check = [=, &layer] {
    const auto state = layer.copy(saved);
    Tensor several(8, 1, entry->channels);
    layer.prefill(state, data->x.rows(0, 8), several.flat(), data->workspace);
    expect_finite(several.flat(), "the output");
    compare_with_steps(layer, layer.copy(saved), data->x, several.flat(), 0, 8, "stepping");
  };
  result.tokens = 1;
  result.state_bytes = layer.state_bytes(saved);
  result.work = projections(*data, 1);
  if (entry->traits.core_step) {
    const Work core = entry->traits.core_step(context);
    result.work += Work{.flops = core.flops, .exps = core.exps};
  }
  // Constant states are read and written, growing ones only read.
  const double state_bytes = entry->traits.skims_state ? 0.0 : double(result.state_bytes);
  result.work.footprint_bytes = 4.0 * double(projected(*data)) + state_bytes;
  result.work.resident_bytes = result.work.footprint_bytes + (grows ? 0.0 : state_bytes);
  if (grows) result.key_value_bytes = double(result.state_bytes);
  if (!grows) result.counters["constant_state"] = 1;
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

/// 128, 512, 2048 ... to where the comparison goes into detail, and the longest.
std::vector<Index> lengths_up_to(Index longest) {
  std::vector<Index> lengths;
  for (Index length = 128; length <= effort().longest_in_detail && length < longest; length *= 4) {
    lengths.push_back(length);
  }
  lengths.push_back(longest);
  return lengths;
}

}  // namespace

void add_layer(const std::string& name, Index channels, bool recurrent, StateGrowth growth, const MixerTraits& traits,
               const std::function<std::unique_ptr<Layer>()>& make) {
  const auto entry = std::make_shared<const Entry>(Entry{name, channels, growth, traits, make});
  const std::string middle = "/" + name + "/channels:" + std::to_string(channels);
  const Index longest = traits.quadratic ? effort().longest_attention : effort().longest;
  for (const Index length : lengths_up_to(std::min(longest, traits.longest))) {
    const std::string end = middle + "/length:" + std::to_string(length);
    const auto forward = [=](int threads) { return sequence(entry, length, threads, false); };
    const bool in_detail = length <= effort().longest_in_detail;
    if (in_detail) {
      add_benchmark("forward" + end, forward);
    } else {
      add_benchmark("forward" + end, 1, [=] { return forward(1); });
    }
    if (!recurrent) continue;
    const bool chosen = effort().prefill == 0 || length == effort().prefill;
    if (chosen) add_benchmark("prefill" + end, 1, [=] { return sequence(entry, length, 1, true); });
    if (growth == StateGrowth::constant ? chosen : in_detail) {
      add_benchmark("step" + middle + "/context:" + std::to_string(length),
                    [=](int threads) { return next_token(entry, length, threads); });
    }
  }
}

}  // namespace seqmix::bench
