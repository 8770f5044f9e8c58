// What programs that continue a text share: their options, their threads, and the loop over tokens.
#pragma once

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <seqmix/core/executor.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/core/workspace.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#ifdef SEQMIX_HAVE_OPENMP
#include <seqmix/core/executor_openmp.hpp>
#endif

namespace generation {

using namespace seqmix;

struct Options {
  std::string model, prompt = "Once upon a time";
  Index tokens = 200, threads = 1;
  std::uint64_t seed = 0;
  double temperature = 0;
  bool flag = false;  // the program's own
};

/// The number that `text` is, all of it and no less than `least`. Throws std::invalid_argument.
template <class Number>
Number parse_number(const std::string& option, const std::string& text, Number least) {
  const char* const begin = text.data();
  const char* end = begin;
  Number value = {};
  bool valid = true;
  if constexpr (std::is_floating_point_v<Number>) {
    value = std::strtod(begin, const_cast<char**>(&end));  // not every standard library has std::from_chars for these
  } else {
    const auto result = std::from_chars(begin, begin + text.size(), value);
    end = result.ptr;
    valid = result.ec == std::errc();
  }
  if (!valid || end == begin || end != begin + text.size() || !(value >= least)) {
    throw std::invalid_argument(option + ": not a number in range: \"" + text + "\"");
  }
  return value;
}

/// The options of a command line; `flag` is the name of the program's own. Throws std::invalid_argument.
inline Options parse(std::span<char* const> arguments, const std::string& flag) {
  Options options;
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const std::string option = arguments[i];
    if (!option.starts_with("--")) {
      if (!options.model.empty()) throw std::invalid_argument("unexpected argument " + option);
      options.model = option;
      continue;
    }
    if (option == flag) {
      options.flag = true;
      continue;
    }
    if (i + 1 == arguments.size()) throw std::invalid_argument(option + ": unknown, or without a value");
    const std::string value = arguments[++i];
    if (option == "--prompt") {
      options.prompt = value;
    } else if (option == "--tokens") {
      options.tokens = parse_number<Index>(option, value, 0);
    } else if (option == "--temperature") {
      options.temperature = parse_number<double>(option, value, 0);
    } else if (option == "--seed") {
      options.seed = parse_number<std::uint64_t>(option, value, 0);
    } else if (option == "--threads") {
      options.threads = parse_number<Index>(option, value, 1);
    } else {
      throw std::invalid_argument(option + ": unknown option");
    }
  }
  if (options.model.empty()) throw std::invalid_argument("no model given");
  return options;
}

inline std::unique_ptr<Executor> make_executor(Index threads) {
#ifdef SEQMIX_HAVE_OPENMP
  if (threads > 1) return std::make_unique<OpenMpExecutor>(int(std::min<Index>(threads, 1024)));
#else
  if (threads > 1) std::fprintf(stderr, "built without OpenMP: runs on one thread\n");
#endif
  return std::make_unique<SerialExecutor>();
}

/// The token with the largest logit.
template <class T>
Index most_likely(std::span<const T> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

/// A token drawn with probability softmax(logits / temperature); the likeliest where the temperature is 0.
inline Index sample(std::span<const float> logits, double temperature, Rng& rng) {
  const Index likeliest = most_likely(logits);
  if (temperature == 0) return likeliest;
  const auto weight = [&](float logit) {
    return std::exp((double(logit) - double(logits[std::size_t(likeliest)])) / temperature);
  };
  double total = 0;
  for (const float logit : logits) total += weight(logit);
  double rest = rng.uniform() * total;
  for (std::size_t token = 0; token < logits.size(); ++token) {
    rest -= weight(logits[token]);
    if (rest < 0) return Index(token);
  }
  return likeliest;  // after rounding, or with NaN
}

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Reads `prompt` at once, then writes options.tokens tokens one by one, each through print(token).
template <class Model, class Print>
void generate(const Model& model, const std::vector<Index>& prompt, const Options& options, Print&& print) {
  const auto executor = make_executor(options.threads);
  Workspace workspace(*executor);
  Rng rng(options.seed);
  auto state = model.initial_state();
  std::vector<float> logits(std::size_t(model.vocabulary()));
  const Stopwatch reading;
  model.prefill(state, prompt, Sequence<float>(std::span(logits), model.vocabulary()), workspace);
  const double prompt_seconds = reading.seconds();

  std::printf("%s", options.prompt.c_str());
  const Stopwatch writing;
  for (Index count = 0; count < options.tokens; ++count) {
    const Index token = sample(logits, options.temperature, rng);
    print(token);
    std::fflush(stdout);
    model.step(state, token, std::span(logits), workspace);
  }
  const double text_seconds = writing.seconds();
  std::printf("\n");
  std::fprintf(stderr, "prompt: %td tokens, %.0f tokens/s\ntext:   %td tokens, %.0f tokens/s\nstate:  %zu bytes\n",
               Index(prompt.size()), double(prompt.size()) / prompt_seconds, options.tokens,
               double(options.tokens) / text_seconds, model.state_bytes(state));
}

/// main: calls body(options), and says on the error stream what it throws.
template <class Body>
int run(int argc, char** argv, const char* name, const char* usage, const std::string& flag, Body&& body) {
  const std::span<char* const> arguments(argv, std::size_t(argc));
  if (argc < 2 || std::any_of(arguments.begin(), arguments.end(), [](auto* a) { return !std::strcmp(a, "--help"); })) {
    std::printf("%s", usage);
    return argc < 2 ? 1 : 0;
  }
  try {
    body(parse(arguments, flag));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace generation
