// Continues a text with a trained RWKV model: the prompt at once by the parallel path, then token by token.
//
//   rwkv_generate model.safetensors --prompt "Once upon a time" --tokens 200 --temperature 0.8 --seed 1
#include <cstdio>
#include <seqmix/core/error.hpp>
#include <seqmix/io/safetensors.hpp>
#include <variant>
#include <vector>

#include "support/generation.hpp"
#include "support/rwkv_model.hpp"

namespace {

using namespace seqmix;

constexpr char usage[] =
    "usage: rwkv_generate <model.safetensors> [options]\n"
    "Continues a text with an RWKV model of version 4, 5.0, 5.1, 5.2, 6.0 or 7.0 whose tokens are bytes.\n"
    "  --prompt <text>        the text to continue (default: \"Once upon a time\")\n"
    "  --tokens <count>       how many tokens to add (default: 200)\n"
    "  --temperature <value>  0 takes the likeliest token, 1 samples as trained (default: 0)\n"
    "  --seed <number>        of the random numbers (default: 0)\n"
    "  --threads <count>      threads to run on (default: 1)\n"
    "  --wide                 write and read each byte as two, the second zero, for models trained on 16-bit units\n"
    "                         (of RWKV/rwkv.cpp's small test models, that of version 6)\n";

template <class Model>
void generate(const Model& model, const generation::Options& options) {
  expect(model.vocabulary() <= 256, "rwkv_generate", "model", "its tokens are not bytes");
  const bool wide = options.flag;
  std::vector<Index> prompt;
  for (const char c : options.prompt) {
    prompt.push_back(static_cast<unsigned char>(c));
    if (wide) prompt.push_back(0);
  }
  if (prompt.empty()) prompt.push_back(0);
  generation::generate(model, prompt, options, [&](Index token) {
    if (!(wide && token == 0)) std::putchar(int(token));
  });
}

}  // namespace

int main(int argc, char** argv) {
  return generation::run(argc, argv, "rwkv_generate", usage, "--wide", [](const generation::Options& options) {
    const auto model = rwkv::load_model<float>(SafetensorsFile(options.model));
    std::visit([&](const auto& known) { generate(known, options); }, model);
  });
}
