// Continues a text with a language model of Mamba-1 or Mamba-2: the prompt at once by the parallel path, then token by token.
//
//   mamba_generate model.safetensors --prompt "Once upon a time" --tokens 200 --temperature 0.8 --seed 1
//   mamba_generate mamba2-130m.safetensors --numbers --prompt "8171 247 1264"
#include <cstdio>
#include <seqmix/core/error.hpp>
#include <seqmix/io/safetensors.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "support/generation.hpp"
#include "support/mamba_model.hpp"

namespace {

using namespace seqmix;

constexpr char usage[] =
    "usage: mamba_generate <model.safetensors> [options]\n"
    "Continues a text with a Mamba language model in the layout of state-spaces/mamba-* or mamba2-*, one file.\n"
    "  --prompt <text>        the text to continue (default: \"Once upon a time\")\n"
    "  --tokens <count>       how many tokens to add (default: 200)\n"
    "  --temperature <value>  0 takes the likeliest token, 1 samples as trained (default: 0)\n"
    "  --seed <number>        of the random numbers (default: 0)\n"
    "  --threads <count>      threads to run on (default: 1)\n"
    "  --numbers              tokens are not bytes: the prompt gives their numbers, and so does the output\n";

std::vector<Index> tokens_of(const generation::Options& options) {
  std::vector<Index> tokens;
  if (options.flag) {
    std::istringstream words(options.prompt);
    for (std::string word; words >> word;) tokens.push_back(generation::parse_number<Index>("--prompt", word, 0));
  } else {
    for (const char c : options.prompt) tokens.push_back(static_cast<unsigned char>(c));
  }
  if (tokens.empty()) tokens.push_back(0);
  return tokens;
}

}  // namespace

int main(int argc, char** argv) {
  return generation::run(argc, argv, "mamba_generate", usage, "--numbers", [](const generation::Options& options) {
    const mamba::Model<float> model{SafetensorsFile(options.model)};
    expect(options.flag || model.vocabulary() <= 256, "mamba_generate", "model", "its tokens are not bytes: --numbers");
    generation::generate(model, tokens_of(options), options, [&](Index token) {
      if (options.flag) {
        std::printf(" %td", token);
      } else {
        std::putchar(int(token));
      }
    });
  });
}
