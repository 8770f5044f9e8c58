// The golden runner can fail: whatever is wrong with a file or with an operator is reported.
#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <functional>
#include <limits>
#include <random>
#include <seqmix/io/safetensors.hpp>

#include "support/golden.hpp"

namespace seqmix::test {
namespace {

/// Running sums, y[t] = s[t] = s[t - 1] + x[t], with a few ways to be wrong.
template <class T>
struct RunningSum final : GoldenRunner<T> {
  explicit RunningSum(GoldenCase& golden)
      : x(golden.array<T>("input.x", {-1, golden.config().integer("channels")})), y(x.shape()), golden_(golden) {
    golden.config().expect("kind", "sum");
    golden.config().expect("scale", 1.0);
    golden.config().ignore("remark");
    causal = golden.config().boolean("causal", true);
    defect = golden.config().text("defect", "");
  }
  Index length() const override { return x.size(0); }
  bool stepwise() const override { return causal; }
  void reset() override {
    state = GoldenArray<T>({x.size(1)});
    if (golden_.has("input.state.s")) state = golden_.array<T>("input.state.s", {x.size(1)});
  }
  void run(Index begin, Index count) override {
    for (Index t = begin; t < begin + count; ++t) {
      for (Index c = 0; c < x.size(1); ++c) {
        state[c] += x.sequence()(t, c);
        y.sequence()(t, c) = state[c];
      }
    }
    if (defect == "pieces" && begin > 0 && count > 1) state[0] += T(1e-3);
    if (defect == "float" && std::same_as<T, float>) y[0] += T(1e-3);
  }
  void step(Index row) override {
    run(row, 1);
    if (defect == "step" && row > 0) y.sequence()(row, 0) += T(1e-3);
  }
  void whole() override {
    run(0, length());
    if (defect == "whole") y.sequence()(0, 0) += T(1e-3);
    if (defect == "not a number") y.sequence()(0, 0) = std::numeric_limits<T>::quiet_NaN();
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", y);
    outputs.add("state.s", state);
  }

  GoldenArray<T> x, y, state;
  GoldenCase& golden_;
  bool causal = true;
  std::string defect;
};

const GoldenRegistration<RunningSum> running_sum{"test_running_sum", "core"};

/// A correct case of 12 rows and 2 channels, changed by `edit`, checked.
struct Parts {
  std::string operator_id = "test_running_sum", level = "core", config = R"({"channels": 2, "kind": "sum"})";
  std::string tolerance = R"({"float64": 1e-9, "float32": 1e-5})";
  std::map<std::string, std::pair<std::vector<Index>, std::vector<double>>> tensors;
};

std::string check(const std::function<void(Parts&)>& edit) {
  Parts parts;
  std::vector<double> x, y, start = {0.5, -2};
  std::vector<double> sum = start;
  for (int i = 0; i < 24; ++i) {
    x.push_back(std::sin(i));
    sum[std::size_t(i % 2)] += x.back();
    y.push_back(sum[std::size_t(i % 2)]);
  }
  parts.tensors["input.x"] = {{12, 2}, x};
  parts.tensors["input.state.s"] = {{2}, start};
  parts.tensors["output.y"] = {{12, 2}, y};
  parts.tensors["output.state.s"] = {{2}, sum};
  edit(parts);
  SafetensorsWriter writer;
  writer.set_metadata("operator", parts.operator_id);
  writer.set_metadata("level", parts.level);
  writer.set_metadata("config", parts.config);
  writer.set_metadata("tolerance", parts.tolerance);
  for (const auto& [name, tensor] : parts.tensors) {
    writer.add<double>(name, std::span<const Index>(tensor.first), std::span<const double>(tensor.second));
  }
  static const std::string unique = std::to_string(std::random_device()());
  const auto path = std::filesystem::temp_directory_path() / ("seqmix_golden_" + unique + ".safetensors");
  writer.write(path.string());
  const std::string result = check_golden_case(path.string());
  std::filesystem::remove(path);
  return result;
}

std::string check_config(const std::string& more) {
  return check([&](Parts& parts) { parts.config = R"({"channels": 2, "kind": "sum", )" + more + "}"; });
}

bool mentions(const std::string& message, const std::string& text) {
  INFO("message: " << message);
  const bool found = message.find(text) != std::string::npos;
  CHECK(found);
  return found;
}

TEST_CASE("a correct case passes") {
  CHECK(check([](Parts&) {}) == "");
  CHECK(check_config(R"("remark": "for people", "scale": 1.0)") == "");
  CHECK(check([](Parts& parts) {
          parts.tensors["grad.input.x"] = {{1}, {0}};
          parts.tensors["cotangent.y"] = {{1}, {0}};
        }) == "");
}

TEST_CASE("a wrong number is reported with its place and both values") {
  const std::string message = check([](Parts& parts) { parts.tensors["output.y"].second[7] = 0.25; });
  mentions(message, "output.y at [3, 1]");
  mentions(message, "0.25");
  mentions(check([](Parts& parts) { parts.tensors["output.state.s"].second[1] += 1e-7; }), "output.state.s at [1]");
  mentions(check([](Parts& parts) { parts.tensors["output.y"].second[0] = std::nan(""); }), "expected nan");
}

TEST_CASE("every path and scalar is checked") {
  mentions(check_config(R"("defect": "whole")"), "double, whole sequence");
  mentions(check_config(R"("defect": "not a number")"), "nan");
  mentions(check_config(R"("defect": "pieces")"), "cut at");
  mentions(check_config(R"("defect": "step")"), "step by step");
  mentions(check_config(R"("defect": "float")"), "float, ");
  CHECK(check_config(R"("defect": "pieces", "causal": false)") == "");
}

TEST_CASE("stepwise tolerances apply to pieces and steps only") {
  const auto with = [](const std::string& defect) {
    return check([&](Parts& parts) {
      parts.config = R"({"channels": 2, "defect": ")" + defect + "\"}";
      parts.tolerance = R"({"float64": 1e-9, "float32": 1e-5, "float64_stepwise": 0.1, "float32_stepwise": 0.1})";
    });
  };
  CHECK(with("pieces") == "");
  CHECK(with("step") == "");
  CHECK(with("whole") != "");
}

TEST_CASE("what the adapter doesn't know is an error") {
  mentions(check([](Parts& parts) { parts.operator_id = "test_no_such"; }), "no adapter for operator \"test_no_such\"");
  mentions(check([](Parts& parts) { parts.level = "layer"; }), "level \"layer\"");
  mentions(check_config(R"("window": 3)"), "config keys that the adapter doesn't know: window");
  mentions(check_config(R"("scale": 2.0)"), "\"scale\" has a value that is not known");
  mentions(check_config(R"("causal": "yes")"), "\"causal\" has an unexpected type");
  mentions(check([](Parts& parts) { parts.config = "{}"; }), "\"channels\" is missing");
  mentions(check([](Parts& parts) { parts.config = "nonsense"; }), "config is not a JSON object");
  mentions(check([](Parts& parts) { parts.tensors["input.mask"] = {{1}, {1}}; }), "doesn't know: input.mask");
  mentions(check([](Parts& parts) { parts.tensors["weight.bias"] = {{1}, {1}}; }), "doesn't know: weight.bias");
  mentions(check([](Parts& parts) { parts.tensors["output.z"] = {{1}, {1}}; }), "doesn't compute output.z");
  mentions(check([](Parts& parts) { parts.tensors["extra"] = {{1}, {1}}; }), "unknown purpose: extra");
  mentions(check([](Parts& parts) { parts.tensors.erase("input.x"); }), "input.x is missing");
  mentions(check([](Parts& parts) { parts.tensors["input.state.s"] = {{1}, {1}}; }), "expected [2]");
  mentions(check([](Parts& parts) { parts.tolerance = "{}"; }), "tolerance lacks \"float64\"");
  CHECK(check_golden_case("/no/such/file.safetensors") != "");
}

TEST_CASE("a config says which keys were used") {
  GoldenConfig config(R"({"a": 1, "b": {"c": [1, 2], "d": null}, "e": 0.5})");
  CHECK(config.integer("a") == 1);
  CHECK(config.unused() == std::vector<std::string>{"b", "e"});
  CHECK(config.object("b").integers("c") == std::vector<Index>{1, 2});
  CHECK(config.unused() == std::vector<std::string>{"e", "b.d"});
  CHECK(config.object("b").is_null("d"));
  CHECK(config.number("e", 7) == 0.5);
  CHECK(config.number("f", 7) == 7);
  CHECK(config.unused().empty());
  CHECK_THROWS_AS(config.integer("e"), GoldenError);
  GoldenConfig limits(R"({"limits": [0.0, Infinity], "text": "to \"Infinity\""})");
  CHECK(limits.numbers("limits") == std::vector<double>{0, std::numeric_limits<double>::max()});
  CHECK(limits.text("text") == "to \"Infinity\"");
  CHECK(limits.has_text("text"));
  CHECK_FALSE(limits.has_text("limits"));
  CHECK_THROWS_AS(config.expect_null("a"), GoldenError);
}

}  // namespace
}  // namespace seqmix::test
