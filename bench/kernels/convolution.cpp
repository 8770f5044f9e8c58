// Causal convolutions with filters as long as the sequence, by Fourier transforms: at once, in pieces, one token at a time,
// and by FFTW where the machine has it. Spectra are prepared beforehand.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <seqmix/engine/convolution_fft.hpp>
#include <seqmix/engine/convolution_streaming.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/data.hpp"

#ifdef SEQMIX_HAVE_FFTW
#include <fftw3.h>
#endif

namespace seqmix::bench {
namespace {

/// Numbers like the values of a model, and filters [channels, length] that fade.
struct Inputs {
  Inputs(Index length, Index channels)
      : x(length, 1, channels, -1, 1, rng), y(length, 1, channels), filter(channels, length) {
    for (Index h = 0; h < channels; ++h) {
      for (Index l = 0; l < length; ++l) {
        filter(h, l) = float(rng.uniform(-1, 1) * std::exp(-3 * double(l) / double(length)));
      }
    }
  }
  /// Throws WrongResult unless `output(t, h)` is the convolution.
  template <class Output>
  void check(const Output& output) const {
    Comparison comparison;
    for (const Index h : {Index(0), x.flat().channels() - 1}) {
      for (const Index t : sampled_rows(x.flat().length())) {
        double sum = 0;
        for (Index l = 0; l <= t; ++l) sum += double(filter(h, l)) * double(x.flat()(t - l, h));
        const float given = output(t, h);
        comparison.add(&given, &sum, 1);
      }
    }
    comparison.expect_within(1e-5, "the long convolution");
  }
  Rng rng{3};
  Tensor x, y;
  Matrix<float> filter;
};

Case case_of(Index length, Index channels) {
  Case result;
  result.work = work::long_convolution(length, channels);
  result.tokens = length;
  return result;
}

Case transforms(Index length, Index channels, int threads) {
  struct Data : Inputs {
    Data(Index of_length, Index of_channels, int of_threads)
        : Inputs(of_length, of_channels),
          convolution(LongConvolution<float>::causal("convolution", of_channels, of_length, filter)),
          workspace(executor(of_threads)) {}
    LongConvolution<float> convolution;
    Workspace workspace;
  };
  const auto data = std::make_shared<Data>(length, channels, threads);
  Case result = case_of(length, channels);
  result.run = [=] { data->convolution.run(data->x.flat(), data->y.flat(), data->workspace); };
  result.check = [=] { data->check([&](Index t, Index h) { return data->y.flat()(t, h); }); };
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

/// From a state, `piece` tokens at a time; the work is that of the whole sequence at once.
Case streaming(Index length, Index channels, Index piece, StreamingSchedule schedule, int threads) {
  struct Data : Inputs {
    Data(Index of_length, Index of_channels, StreamingSchedule of_schedule, int of_threads)
        : Inputs(of_length, of_channels),
          convolution("convolution", of_channels, filter, of_schedule),
          state(std::size_t(convolution.state_shape().size())),
          workspace(executor(of_threads)) {}
    void run(Index t, Index rows) {
      convolution.run(state.data(), t, x.flat().rows(t, rows), y.flat().rows(t, rows), workspace);
    }
    /// Of every token the shortest time over several passes: a step that other programs broke into doesn't count, one that
    /// takes long each time does.
    std::vector<double> step_seconds(double at_least, int least_passes) {
      using Clock = std::chrono::steady_clock;
      const auto since = [](Clock::time_point begin) {
        return std::chrono::duration<double>(Clock::now() - begin).count();
      };
      double clock = std::numeric_limits<double>::infinity();
      for (int i = 0; i < 1000; ++i) {
        const auto begin = Clock::now();
        clock = std::min(clock, since(begin));
      }
      std::vector<double> seconds(std::size_t(x.flat().length()), std::numeric_limits<double>::infinity());
      const auto all = Clock::now();
      for (int pass = 0; pass < least_passes || since(all) < at_least; ++pass) {
        std::fill(state.begin(), state.end(), 0.0f);
        for (Index t = 0; t < x.flat().length(); ++t) {
          const auto begin = Clock::now();
          run(t, 1);
          double& least = seconds[std::size_t(t)];
          least = std::min(least, std::max(since(begin) - clock, 0.0));
        }
      }
      return seconds;
    }
    StreamingConvolution<float> convolution;
    Buffer<float> state;
    Workspace workspace;
  };
  const auto data = std::make_shared<Data>(length, channels, schedule, threads);
  Case result = case_of(length, channels);
  result.prepare = [=] { std::fill(data->state.begin(), data->state.end(), 0.0f); };
  result.run = [=] {
    for (Index t = 0; t < length; t += piece) data->run(t, piece);
  };
  const auto counters = std::make_shared<std::map<std::string, double>>();
  result.check = [=] {
    data->check([&](Index t, Index h) { return data->y.flat()(t, h); });
    if (piece > 1) return;
    std::vector<double> seconds = data->step_seconds(4 * effort().seconds, 2 * effort().least_runs);
    std::sort(seconds.begin(), seconds.end());
    double sum = 0;
    for (const double step : seconds) sum += step;
    const double median = seconds[seconds.size() / 2];
    *counters = {{"step_mean_ns", 1e9 * sum / double(seconds.size())},
                 {"step_median_ns", 1e9 * median},
                 {"step_longest_ns", 1e9 * seconds.back()},
                 {"step_longest_to_median", seconds.back() / median}};
  };
  result.add_counters = [=](std::map<std::string, double>& all) { all.insert(counters->begin(), counters->end()); };
  result.state_bytes = Index(data->state.size() * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

/// What streaming does without: the sum over the past, for the token in the middle, whose past is the mean of all. 64 channels.
Case direct_sum(Index length) {
  constexpr Index channels = 64, width = lanes<float>, vectors = 4;
  struct Data : Inputs {
    explicit Data(Index of_length) : Inputs(of_length, channels), taps(of_length, 1, channels) {
      for (Index l = 0; l < of_length; ++l) {
        for (Index h = 0; h < channels; ++h) taps.flat()(l, h) = filter(h, l);
      }
    }
    Tensor taps;
  };
  const auto data = std::make_shared<Data>(length);
  const Index t = length / 2;
  Case result;
  result.work = {.flops = 2.0 * double(t * channels),
                 .resident_bytes = 8.0 * double(t * channels),
                 .footprint_bytes = 8.0 * double(t * channels)};
  result.tokens = 1;
  result.run = [=] {
    for (Index h = 0; h < channels; h += vectors * width) {
      Batch<float> even[vectors], odd[vectors];
      unroll<vectors>([&](auto b) SEQMIX_INLINE_LAMBDA { even[b] = odd[b] = broadcast(0.0f); });
      const auto add = [&](Batch<float>(&sums)[vectors], Index l) SEQMIX_INLINE_LAMBDA {
        const float *const tap = data->taps.flat().row(l) + h, *const x = data->x.flat().row(t - l) + h;
        unroll<vectors>(
            [&](auto b) SEQMIX_INLINE_LAMBDA { sums[b] = fma(load(tap + b * width), load(x + b * width), sums[b]); });
      };
      for (Index l = 0; l < t; l += 2) add(even, l), add(odd, l + 1);
      add(even, t);
      unroll<vectors>([&](auto b)
                          SEQMIX_INLINE_LAMBDA { store(data->y.flat().row(t) + h + b * width, even[b] + odd[b]); });
    }
  };
  result.check = [=] {
    Comparison comparison;
    for (const Index h : {Index(0), channels - 1}) {
      double sum = 0;
      for (Index l = 0; l <= t; ++l) sum += double(data->filter(h, l)) * double(data->x.flat()(t - l, h));
      comparison.add(&data->y.flat()(t, h), &sum, 1);
    }
    comparison.expect_within(1e-4, "the sum over the past");
  };
  return result;
}

#ifdef SEQMIX_HAVE_FFTW
/// One channel after the other, [channels, length], which is what FFTW is quickest at: its strided plans take several
/// times as long. Scratch stays in cache.
Case fftw(Index length, Index channels) {
  struct Data : Inputs {
    Data(Index of_length, Index of_channels)
        : Inputs(of_length, of_channels),
          length(of_length),
          channels(of_channels),
          rows(Matrix<float>::Zero(channels, length)),
          convolved(rows),
          spectra(std::size_t(2 * channels * bins())),
          numbers(std::size_t(2 * length)),
          spectrum(std::size_t(2 * bins())),
          forward(fftwf_plan_dft_r2c_1d(int(2 * length), numbers.data(), complex(spectrum.data()), FFTW_MEASURE)),
          inverse(fftwf_plan_dft_c2r_1d(int(2 * length), complex(spectrum.data()), numbers.data(), FFTW_MEASURE)) {
      for (Index h = 0; h < channels; ++h) {
        for (Index t = 0; t < length; ++t) rows(h, t) = x.flat()(t, h);
        load(filter.row(h).data());
        fftwf_execute(forward.get());
        for (Index i = 0; i < 2 * bins(); ++i) {
          spectra[std::size_t(2 * h * bins() + i)] = spectrum[std::size_t(i)] / float(2 * length);
        }
      }
    }
    Index bins() const { return length + 1; }
    static fftwf_complex* complex(float* data) { return reinterpret_cast<fftwf_complex*>(data); }
    void load(const float* row) {
      std::copy_n(row, length, numbers.begin());
      std::fill(numbers.begin() + length, numbers.end(), 0.0f);
    }
    void run() {
      for (Index h = 0; h < channels; ++h) {
        load(rows.row(h).data());
        fftwf_execute(forward.get());
        const float* const by = spectra.data() + 2 * h * bins();
        float* const to = spectrum.data();
        for (Index k = 0; k < 2 * bins(); k += 2) {
          const float real = to[k] * by[k] - to[k + 1] * by[k + 1];
          to[k + 1] = to[k] * by[k + 1] + to[k + 1] * by[k];
          to[k] = real;
        }
        fftwf_execute(inverse.get());
        std::copy_n(numbers.begin(), length, convolved.row(h).data());
      }
    }
    struct Destroy {
      void operator()(fftwf_plan plan) const { fftwf_destroy_plan(plan); }
    };
    using Plan = std::unique_ptr<std::remove_pointer_t<fftwf_plan>, Destroy>;
    Index length, channels;
    Matrix<float> rows, convolved;
    Buffer<float> spectra, numbers, spectrum;
    Plan forward, inverse;
  };
  const auto data = std::make_shared<Data>(length, channels);
  Case result = case_of(length, channels);
  result.run = [=] { data->run(); };
  result.check = [=] { data->check([&](Index t, Index h) { return data->convolved(h, t); }); };
  return result;
}
#endif

const bool registered = [] {
  for (const Index channels : {64, 768}) {
    for (const Index length : {1024, 8192, 65536}) {
      const std::string sizes = "/channels:" + std::to_string(channels) + "/length:" + std::to_string(length);
      add_benchmark("kernel/convolution/long" + sizes,
                    [=](int threads) { return transforms(length, channels, threads); });
#ifdef SEQMIX_HAVE_FFTW
      add_benchmark("kernel/convolution/long_fftw" + sizes, 1, [=] { return fftw(length, channels); });
#endif
    }
  }
  for (const Index length : {4096, 65536}) {
    add_benchmark("kernel/convolution/direct_sum/channels:64/length:" + std::to_string(length), 1,
                  [=] { return direct_sum(length); });
    add_benchmark("kernel/convolution/pieces_of_512/channels:64/length:" + std::to_string(length),
                  [=](int threads) { return streaming(length, 64, 512, StreamingSchedule::amortised, threads); });
    for (const Index channels : {64, 768}) {
      if (channels * length > 64 * 65536) continue;
      const std::string sizes = "/channels:" + std::to_string(channels) + "/length:" + std::to_string(length);
      add_benchmark("kernel/convolution/streaming" + sizes, 1,
                    [=] { return streaming(length, channels, 1, StreamingSchedule::amortised, 1); });
      add_benchmark("kernel/convolution/streaming_balanced" + sizes, 1,
                    [=] { return streaming(length, channels, 1, StreamingSchedule::balanced, 1); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
