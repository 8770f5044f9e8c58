// Real trained models in float, and checkpoints that are broken.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>

#include "rwkv_models.hpp"

namespace {

using namespace model_tests;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

TEST_CASE("real models give the logits and texts known for them, in float", "[models]") { check_real_models<float>(); }

/// Loading it fails, and the message names the file and says `problem`.
void check_refused(const SampleCheckpoint& checkpoint, const std::string& problem) {
  CHECK_THROWS_MATCHES(rwkv::load_model<float>(SafetensorsFile(checkpoint.bytes(), "sample")), SafetensorsError,
                       MessageMatches(ContainsSubstring("sample: ") && ContainsSubstring(problem)));
}

TEST_CASE("broken checkpoints are refused", "[models]") {
  const SampleCheckpoint good;
  CHECK_NOTHROW(rwkv::load_model<float>(SafetensorsFile(good.bytes(), "sample")));

  SECTION("versions") {
    for (const std::string version : {"5.3", "", "52", "6.0"}) {
      SampleCheckpoint bad;
      bad.metadata["version"] = version;
      check_refused(
          bad, "\"rwkv5 " + version +
                   "\" are unknown; supported are rwkv4 4.0, rwkv5 5.0, rwkv5 5.1, rwkv5 5.2, rwkv6 6.0, rwkv7 7.0");
    }
    SampleCheckpoint bad;
    bad.metadata["architecture"] = "llama";
    check_refused(bad, "\"llama 5.2\" are unknown");
    bad.metadata = {};
    check_refused(bad, "\"(none) (none)\" are unknown");
    bad.metadata = {{"architecture", "rwkv4"}, {"version", "4.1"}};
    check_refused(bad, "\"rwkv4 4.1\" are unknown");
  }
  SECTION("numbers of blocks") {
    for (const std::string count : {"", "0", "-1", "2x", "9999999", "99999999999999999999"}) {
      SampleCheckpoint bad;
      bad.metadata["n_layer"] = count;
      check_refused(bad, "n_layer");
    }
    SampleCheckpoint bad;
    bad.metadata["n_layer"] = "3";
    check_refused(bad, "tensor \"blocks.2.");
  }
  SECTION("missing tensors") {
    for (const auto& [name, shape] : good.shapes) {
      if (name.find("gate") != name.npos || name.find("time_mix_g") != name.npos) continue;  // optional
      SampleCheckpoint bad;
      bad.shapes.erase(name);
      // What the layer, not the file, calls required is named as the layer knows it.
      check_refused(bad, name.ends_with("time_faaaa") ? "time_faaaa" : "tensor \"" + name + "\": missing");
    }
    for (const auto& [name, shape] : SampleCheckpoint(4).shapes) {
      SampleCheckpoint bad(4);
      bad.shapes.erase(name);
      check_refused(bad, "tensor \"" + name + "\": missing");
    }
    for (const auto& [name, shape] : SampleCheckpoint(7).shapes) {
      SampleCheckpoint bad(7);
      bad.shapes.erase(name);
      const std::string last = name.substr(name.rfind('.') + 1);
      const bool of_first_value = last == "v0" || last == "v1" || last == "v2";
      check_refused(bad, of_first_value ? "rwkv7: " + last + ": missing" : "tensor \"" + name + "\": missing");
    }
  }
  SECTION("wrong shapes") {
    for (const auto& [name, shape] : good.shapes) {
      SampleCheckpoint bad;
      bad.shapes[name] = {3, 5};
      INFO(name);
      CHECK_THROWS_AS(rwkv::load_model<float>(SafetensorsFile(bad.bytes(), "sample")), SafetensorsError);
    }
    for (const auto& [name, shape] : SampleCheckpoint(4).shapes) {
      SampleCheckpoint bad(4);
      bad.shapes[name] = {3, 5};
      INFO(name);
      CHECK_THROWS_AS(rwkv::load_model<float>(SafetensorsFile(bad.bytes(), "sample")), SafetensorsError);
    }
    for (const auto& [name, shape] : SampleCheckpoint(7).shapes) {
      SampleCheckpoint bad(7);
      bad.shapes[name] = {3, 5};
      INFO(name);
      CHECK_THROWS_AS(rwkv::load_model<float>(SafetensorsFile(bad.bytes(), "sample")), SafetensorsError);
    }
    SampleCheckpoint bad;
    bad.shapes["blocks.1.ffn.value.weight"] = {8, 13};
    check_refused(bad, "blocks.1.ffn: rwkv_channel_mixing: value.weight: expected shape [8, 12], given [8, 13]");
  }
  SECTION("integers") {
    SampleCheckpoint bad;
    bad.integers = "blocks.1.ffn.key.weight";
    check_refused(bad, "tensor \"blocks.1.ffn.key.weight\": expected floating-point numbers, given I32");
  }
  SECTION("truncated files") {
    const auto bytes = good.bytes();
    for (std::size_t size = 0; size < bytes.size(); size += 97) {
      std::vector<std::byte> part(bytes.begin(), bytes.begin() + Index(size));
      CHECK_THROWS_AS(rwkv::load_model<float>(SafetensorsFile(std::move(part), "sample")), SafetensorsError);
    }
  }
}

}  // namespace
