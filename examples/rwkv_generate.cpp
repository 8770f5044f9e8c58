// Continues a text with a trained RWKV model: the prompt at once by the parallel path, then token by token.
//
//   rwkv_generate model.safetensors --prompt "Once upon a time" --tokens 200 --temperature 0.8 --seed 1
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
#include <seqmix/core/error.hpp>
#include <seqmix/core/executor.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/io/safetensors.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "support/rwkv_model.hpp"

#ifdef SEQMIX_HAVE_OPENMP
#include <seqmix/core/executor_openmp.hpp>
#endif

namespace {

using namespace seqmix;

constexpr char usage[] =
    "usage: rwkv_generate <model.safetensors> [options]\n"
    "Continues a text with an RWKV model of version 5.0, 5.1, 5.2, 6.0 or 7.0 whose tokens are bytes.\n"
    "  --prompt <text>        the text to continue (default: \"Once upon a time\")\n"
    "  --tokens <count>       how many tokens to add (default: 200)\n"
    "  --temperature <value>  0 takes the likeliest token, 1 samples as trained (default: 0)\n"
    "  --seed <number>        of the random numbers (default: 0)\n"
    "  --threads <count>      threads to run on (default: 1)\n"
    "  --wide                 write and read each byte as two, the second zero, for models trained on 16-bit units\n"
    "                         (of RWKV/rwkv.cpp's small test models, that of version 6)\n";

struct Options {
  std::string model, prompt = "Once upon a time";
  Index tokens = 200, threads = 1;
  std::uint64_t seed = 0;
  double temperature = 0;
  bool wide = false;
};

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

Options parse(std::span<char* const> arguments) {
  Options options;
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const std::string option = arguments[i];
    if (!option.starts_with("--")) {
      options.model = option;
      continue;
    }
    if (option == "--wide") {
      options.wide = true;
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

std::unique_ptr<Executor> make_executor(Index threads) {
#ifdef SEQMIX_HAVE_OPENMP
  if (threads > 1) return std::make_unique<OpenMpExecutor>(int(std::min<Index>(threads, 1024)));
#else
  if (threads > 1) std::fprintf(stderr, "built without OpenMP: runs on one thread\n");
#endif
  return std::make_unique<SerialExecutor>();
}

/// A token drawn with probability softmax(logits / temperature); the likeliest where the temperature is 0.
Index sample(std::span<const float> logits, double temperature, Rng& rng) {
  const Index likeliest = rwkv::most_likely(logits);
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

template <class Model>
void generate(const Model& model, const Options& options, Executor& executor) {
  expect(model.vocabulary() <= 256, "rwkv_generate", "model", "its tokens are not bytes");
  std::vector<Index> prompt;
  for (const char c : options.prompt) {
    prompt.push_back(static_cast<unsigned char>(c));
    if (options.wide) prompt.push_back(0);
  }
  if (prompt.empty()) prompt.push_back(0);

  Workspace workspace(executor);
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
    if (!(options.wide && token == 0)) std::putchar(int(token));
    std::fflush(stdout);
    model.step(state, token, std::span(logits), workspace);
  }
  const double text_seconds = writing.seconds();
  std::printf("\n");
  std::fprintf(stderr, "prompt: %td tokens, %.0f tokens/s\ntext:   %td tokens, %.0f tokens/s\nstate:  %zu bytes\n",
               Index(prompt.size()), double(prompt.size()) / prompt_seconds, options.tokens,
               double(options.tokens) / text_seconds, model.state_bytes(state));
}

}  // namespace

int main(int argc, char** argv) {
  const std::span<char* const> arguments(argv, std::size_t(argc));
  if (argc < 2 || std::any_of(arguments.begin(), arguments.end(), [](auto* a) { return !std::strcmp(a, "--help"); })) {
    std::printf("%s", usage);
    return argc < 2 ? 1 : 0;
  }
  try {
    const Options options = parse(arguments);
    const auto executor = make_executor(options.threads);
    const auto model = rwkv::load_model<float>(SafetensorsFile(options.model));
    std::visit([&](const auto& known) { generate(known, options, *executor); }, model);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rwkv_generate: %s\n", error.what());
    return 1;
  }
}
