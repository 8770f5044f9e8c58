// The safetensors reader and writer: round trips, conversions, shape rules, and files that lie.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/io/safetensors.hpp>
#include <seqmix/parts/convolved_streams.hpp>
#include <string>

namespace {

using namespace seqmix;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

/// A file with this header and `data_size` bytes 0, 1, 2 ... of data.
std::vector<std::byte> file_bytes(const std::string& header, std::size_t data_size) {
  std::vector<std::byte> bytes;
  internal::append_little(bytes, std::uint64_t(header.size()));
  for (const char c : header) bytes.push_back(std::byte(c));
  for (std::size_t i = 0; i < data_size; ++i) bytes.push_back(std::byte(i));
  return bytes;
}

SafetensorsFile open_header(const std::string& header, std::size_t data_size) {
  return SafetensorsFile(file_bytes(header, data_size), "sample");
}

/// The file is refused, with a message that names it and says `problem`.
void check_refused(const std::string& header, std::size_t data_size, const std::string& problem) {
  INFO(header.substr(0, 200));
  CHECK_THROWS_MATCHES(open_header(header, data_size), SafetensorsError,
                       MessageMatches(ContainsSubstring("sample: ") && ContainsSubstring(problem)));
}

/// A file in the temporary directory, removed at the end.
struct TemporaryFile {
  std::string path = (std::filesystem::temp_directory_path() /
                      ("seqmix_safetensors_test_" + std::to_string(reinterpret_cast<std::uintptr_t>(this))))
                         .string();
  ~TemporaryFile() { std::remove(path.c_str()); }
};

/// The tensors of a small operator.
struct SampleWeights {
  Matrix<float> projection;
  Vector<float> mix, bias;

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("key.weight", self.projection, Presence::required);
    visitor("time_mix", self.mix, Presence::required);
    visitor("key.bias", self.bias, Presence::optional);
  }
};

/// The short convolutions of a layer alone.
struct ConvolutionWeights : ConvolvedStreamsWeights<float> {
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visit_all(self, visitor);
  }
};

TEST_CASE("safetensors: what is written is read back", "[io]") {
  SafetensorsWriter writer;
  writer.set_metadata("operator", "sample");
  writer.set_metadata("quote", "a \"b\"\n\xC3\xA4");
  const std::vector<double> doubles = {1.0, -0.0, 1e300, std::numeric_limits<double>::infinity(), 5e-324, 0.1};
  const std::vector<float> floats = {1.5f, -2.25f, 3e-45f};
  const std::vector<std::int64_t> integers = {0, -1, std::numeric_limits<std::int64_t>::max()};
  writer.add("doubles", {2, 3}, doubles);
  writer.add("floats", {3}, floats);
  writer.add("bytes", {1, 1, 2}, std::vector<std::uint8_t>{7, 255});
  writer.add("integers", {3}, integers);
  writer.add("small", {2}, std::vector<std::int32_t>{-5, 6});
  writer.add("scalar", {}, std::vector<float>{42});
  writer.add("empty", {0, 5}, std::vector<float>{});
  const Matrix<double> matrix = Matrix<double>::Random(3, 4);
  const Vector<float> vector = Vector<float>::Random(5);
  writer.add("matrix", matrix);
  writer.add("vector", vector);

  const TemporaryFile temporary;
  writer.write(temporary.path);
  SafetensorsFile opened(temporary.path);
  const SafetensorsFile file = std::move(opened);  // the views must survive a move

  CHECK(file.metadata() == std::map<std::string, std::string>{{"operator", "sample"}, {"quote", "a \"b\"\n\xC3\xA4"}});
  CHECK(file.names() == std::vector<std::string>{"bytes", "doubles", "empty", "floats", "integers", "matrix", "scalar",
                                                 "small", "vector"});
  CHECK(file.contains("doubles"));
  CHECK_FALSE(file.contains("double"));
  CHECK(file.tensor("doubles").shape == std::vector<Index>{2, 3});
  CHECK(file.tensor("doubles").dtype == Dtype::f64);
  CHECK(std::ranges::equal(file.read<double>("doubles"), doubles));
  CHECK(std::signbit(file.read<double>("doubles")[1]));
  CHECK(std::ranges::equal(file.read<float>("floats"), floats));
  CHECK(std::ranges::equal(file.read<std::int64_t>("integers"), integers));
  CHECK(file.read<double>("integers")[1] == -1.0);
  CHECK(file.read<Index>("small")[0] == -5);
  CHECK(file.read<int>("bytes")[1] == 255);
  CHECK(file.read<float>("scalar").size() == 1);
  CHECK(file.read<float>("empty").empty());
  CHECK(file.matrix<double>("matrix") == matrix);
  CHECK(file.vector<float>("vector") == vector);
  for (const auto& name : file.names()) {
    const auto& tensor = file.tensor(name);
    CHECK(reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % std::uintptr_t(dtype_size(tensor.dtype)) == 0);
  }

  // The same bytes from memory; copies of the buffer move with the object.
  std::vector<SafetensorsFile> files;
  files.push_back(SafetensorsFile(writer.bytes(), "memory"));
  files.push_back(SafetensorsFile(writer.bytes(), "memory"));
  CHECK(std::ranges::equal(files.front().read<double>("doubles"), doubles));
}

TEST_CASE("safetensors: an empty file of tensors is valid", "[io]") {
  const SafetensorsFile file(SafetensorsWriter().bytes(), "memory");
  CHECK(file.names().empty());
  CHECK(file.metadata().empty());
  CHECK(open_header("{}", 0).names().empty());
  CHECK(open_header(R"({"__metadata__":{}}   )", 0).names().empty());
}

TEST_CASE("safetensors: every type of number is converted", "[io]") {
  const auto read = [](const std::string& dtype, std::vector<std::uint8_t> data, std::size_t count) {
    const std::string size = std::to_string(data.size());
    // One byte before the tensor, so that nothing is aligned.
    auto bytes = file_bytes(R"({"pad":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":")" + dtype +
                                R"(","shape":[)" + std::to_string(count) + R"(],"data_offsets":[1,)" +
                                std::to_string(data.size() + 1) + "]}}",
                            1);
    for (const auto byte : data) bytes.push_back(std::byte(byte));
    return SafetensorsFile(std::move(bytes), "sample");
  };
  CHECK(std::ranges::equal(read("BOOL", {0, 1, 2}, 3).read<float>("x"), std::vector{0.0f, 1.0f, 1.0f}));
  CHECK(std::ranges::equal(read("U8", {0, 200}, 2).read<double>("x"), std::vector{0.0, 200.0}));
  CHECK(std::ranges::equal(read("I8", {0, 200}, 2).read<double>("x"), std::vector{0.0, -56.0}));
  CHECK(std::ranges::equal(read("U16", {1, 255}, 1).read<Index>("x"), std::vector<Index>{0xFF01}));
  CHECK(std::ranges::equal(read("I16", {1, 255}, 1).read<Index>("x"), std::vector<Index>{-255}));
  CHECK(std::ranges::equal(read("U32", {1, 0, 0, 128}, 1).read<Index>("x"), std::vector<Index>{0x80000001}));
  CHECK(std::ranges::equal(read("I32", {254, 255, 255, 255}, 1).read<Index>("x"), std::vector<Index>{-2}));
  CHECK(std::ranges::equal(read("U64", {5, 0, 0, 0, 0, 0, 0, 0}, 1).read<int>("x"), std::vector{5}));
  CHECK(std::ranges::equal(read("I64", {5, 0, 0, 0, 0, 0, 0, 0}, 1).read<float>("x"), std::vector{5.0f}));
  CHECK(std::ranges::equal(read("F32", {0, 0, 128, 63}, 1).read<double>("x"), std::vector{1.0}));
  CHECK(std::ranges::equal(read("F64", {0, 0, 0, 0, 0, 0, 240, 63}, 1).read<float>("x"), std::vector{1.0f}));
  CHECK(std::ranges::equal(read("BF16", {128, 63, 32, 192}, 2).read<float>("x"), std::vector{1.0f, -2.5f}));
  // 1, -2, largest, smallest normal, smallest subnormal, largest subnormal, infinity, -0.
  const auto half = read("F16", {0, 60, 0, 192, 255, 123, 0, 4, 1, 0, 255, 3, 0, 124, 0, 128}, 8).read<double>("x");
  CHECK(std::ranges::equal(half, std::vector{1.0, -2.0, 65504.0, 0x1p-14, 0x1p-24, 1023 * 0x1p-24,
                                             std::numeric_limits<double>::infinity(), -0.0}));
  CHECK(std::signbit(half[7]));
  CHECK(std::isnan(read("F16", {1, 124}, 1).read<float>("x")[0]));
  CHECK(std::isnan(read("BF16", {129, 127}, 1).read<float>("x")[0]));

  CHECK_THROWS_MATCHES(read("F32", {0, 0, 128, 63}, 1).read<Index>("x"), SafetensorsError,
                       MessageMatches(ContainsSubstring("sample: tensor \"x\": expected integers, given F32")));
  CHECK_THROWS_MATCHES(read("U64", {0, 0, 0, 0, 0, 0, 0, 255}, 1).read<Index>("x"), SafetensorsError,
                       MessageMatches(ContainsSubstring("\"x\": holds a number too large")));
  CHECK_THROWS_AS(read("I32", {254, 255, 255, 255}, 1).read<std::uint8_t>("x"), SafetensorsError);
}

TEST_CASE("safetensors: tensors become matrices and vectors by rule", "[io]") {
  SafetensorsWriter writer;
  std::vector<float> numbers(24);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = float(i);
  const auto first = [&](std::size_t count) {
    return std::vector<float>(numbers.begin(), numbers.begin() + Index(count));
  };
  writer.add("matrix", {4, 6}, numbers);
  writer.add("one_row", {1, 24}, numbers);
  writer.add("cube", {2, 3, 4}, numbers);
  writer.add("leading", {1, 6, 4}, numbers);
  writer.add("mix", {1, 1, 24}, numbers);
  writer.add("filter", {6, 1, 4}, numbers);
  writer.add("one_filter", {1, 1, 4}, first(4));
  writer.add("one_head", {1, 1, 1, 24}, numbers);
  writer.add("column", {24, 1}, numbers);
  writer.add("vector", {24}, numbers);
  writer.add("scalar", {}, first(1));
  writer.add("ones", {1, 1, 1}, first(1));
  const SafetensorsFile file(writer.bytes(), "sample");
  const auto matrix_shape = [&](const std::string& name) { return Shape(file.matrix<double>(name)); };
  CHECK(matrix_shape("matrix") == Shape{4, 6});
  CHECK(matrix_shape("one_row") == Shape{1, 24});
  CHECK(matrix_shape("cube") == Shape{6, 4});
  CHECK(matrix_shape("leading") == Shape{6, 4});
  CHECK(matrix_shape("mix") == Shape{1, 24});
  CHECK(matrix_shape("filter") == Shape{6, 4});
  CHECK(matrix_shape("one_filter") == Shape{1, 4});
  CHECK(matrix_shape("one_head") == Shape{1, 24});
  CHECK(matrix_shape("vector") == Shape{24, 1});
  CHECK(matrix_shape("scalar") == Shape{1, 1});
  CHECK(matrix_shape("ones") == Shape{1, 1});
  CHECK(file.matrix<double>("cube")(4, 3) == 19);
  for (const std::string name : {"one_row", "mix", "column", "vector"}) {
    CHECK(Shape(file.vector<float>(name)) == Shape{24});
    CHECK(file.vector<float>(name)[23] == 23);
  }
  CHECK(Shape(file.vector<float>("scalar")) == Shape{1});
  CHECK_THROWS_MATCHES(file.vector<float>("matrix"), SafetensorsError,
                       MessageMatches(ContainsSubstring("tensor \"matrix\": expected a vector, given shape [4, 6]")));
  CHECK_THROWS_MATCHES(file.matrix<float>("nothing"), SafetensorsError,
                       MessageMatches(ContainsSubstring("sample: tensor \"nothing\": missing")));
}

TEST_CASE("safetensors: weights are loaded by their names", "[io]") {
  SampleWeights weights{Matrix<float>::Random(3, 2), Vector<float>::Random(3), {}};
  SafetensorsWriter writer;
  add_weights(writer, weights, "blocks.0.");
  add_weights(writer, SampleWeights{weights.projection, {}, {}}, "blocks.1.");
  writer.add("blocks.2.key.weight", {3, 2}, std::vector<std::int32_t>(6));
  writer.add("blocks.2.time_mix", {3}, std::vector<float>(3));
  const SafetensorsFile file(writer.bytes(), "sample");

  SampleWeights loaded;
  loaded.bias = Vector<float>::Random(3);
  load_weights(loaded, file, "blocks.0.");
  CHECK(loaded.projection == weights.projection);
  CHECK(loaded.mix == weights.mix);
  CHECK(loaded.bias.size() == 0);

  loaded.projection.setZero();
  CHECK_THROWS_MATCHES(load_weights(loaded, file, "blocks.1."), SafetensorsError,
                       MessageMatches(ContainsSubstring("sample: tensor \"blocks.1.time_mix\": missing")));
  CHECK(loaded.projection.isZero());
  CHECK_THROWS_MATCHES(
      load_weights(loaded, file, "blocks.2."), SafetensorsError,
      MessageMatches(ContainsSubstring("\"blocks.2.key.weight\": expected floating-point numbers, given I32")));
}

TEST_CASE("safetensors: short convolutions of one channel are loaded", "[io]") {
  SafetensorsWriter writer;
  for (const char* stream : {"q", "k", "v"}) {
    writer.add(stream + std::string("_conv1d.weight"), {1, 1, 4}, std::vector<float>{1, 2, 3, 4});
  }
  const SafetensorsFile file(writer.bytes(), "sample");
  ConvolutionWeights weights;
  load_weights(weights, file);
  CHECK(weights.value == Matrix<float>{{1, 2, 3, 4}});
  CHECK_NOTHROW(
      ConvolvedStreams<float>("layer", {}, 1, 1, 1, weights, StreamActivation::swish, StreamActivation::swish));
}

TEST_CASE("safetensors: files that lie are refused", "[io]") {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  CHECK(open_header(good, 8).contains("a"));

  SECTION("sizes") {
    CHECK_THROWS_AS(SafetensorsFile(std::vector<std::byte>(), "sample"), SafetensorsError);
    CHECK_THROWS_AS(SafetensorsFile(std::vector<std::byte>(7), "sample"), SafetensorsError);
    for (const std::uint64_t size : {good.size() + 9, std::size_t(99'999'999), std::size_t(100'000'001),
                                     std::numeric_limits<std::size_t>::max(), std::size_t(1) << 63}) {
      auto bytes = file_bytes(good, 8);
      for (std::size_t i = 0; i < 8; ++i) bytes[i] = std::byte(size >> (8 * i));
      CHECK_THROWS_MATCHES(SafetensorsFile(std::move(bytes), "sample"), SafetensorsError,
                           MessageMatches(ContainsSubstring("sample: the header ")));
    }
    check_refused(good, 7, "tensor \"a\": data_offsets reach beyond the file");
    check_refused(good, 9, "bytes at its end belong to no tensor");
    const auto whole = file_bytes(good, 8);
    for (std::size_t size = 0; size < whole.size(); ++size) {
      std::vector<std::byte> part(whole.begin(), whole.begin() + Index(size));
      CHECK_THROWS_AS(SafetensorsFile(std::move(part), "sample"), SafetensorsError);
    }
  }
  SECTION("structure") {
    check_refused("", 0, "not valid JSON");
    check_refused("{", 0, "not valid JSON");
    check_refused(good + "x", 8, "not valid JSON");
    check_refused("\"text\"", 0, "not a JSON object");
    check_refused("[]", 0, "not a JSON object");
    check_refused("null", 0, "not a JSON object");
    check_refused("17", 0, "not a JSON object");
    check_refused("{\"\xFF\":{}}", 0, "not valid JSON");
    check_refused(R"({"a":7})", 0, "tensor \"a\": unexpected a number");
    check_refused(R"({"a":[]})", 0, "tensor \"a\": unexpected an array");
    check_refused(R"({"a":{}})", 0, "tensor \"a\": the header lacks");
    check_refused(R"({"a":{"dtype":"F32","shape":[0]}})", 0, "tensor \"a\": the header lacks");
    check_refused(R"({"a":{"dtype":"F32","data_offsets":[0,0]}})", 0, "tensor \"a\": the header lacks");
    check_refused(R"({"a":{"shape":[0],"data_offsets":[0,0]}})", 0, "tensor \"a\": the header lacks");
    check_refused(R"({"a":{"dtype":7,"shape":[0],"data_offsets":[0,0]}})", 0, "unexpected a number");
    check_refused(R"({"a":{"dtype":"F32","shape":0,"data_offsets":[0,0]}})", 0, "unexpected a number");
    check_refused(R"({"a":{"dtype":"F32","shape":null,"data_offsets":[0,0]}})", 0, "unexpected null");
    check_refused(R"({"a":{"dtype":"F32","shape":[true],"data_offsets":[0,0]}})", 0, "unexpected a boolean");
    check_refused(R"({"a":{"dtype":"F32","shape":["0"],"data_offsets":[0,0]}})", 0, "unexpected a string");
    check_refused(R"({"a":{"dtype":"F32","shape":[[0]],"data_offsets":[0,0]}})", 0, "unexpected an array");
    check_refused(R"({"a":{"dtype":"F32","shape":[{}],"data_offsets":[0,0]}})", 0, "unexpected an object");
    check_refused(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"more":1}})", 0, "unknown field \"more\"");
    check_refused(R"({"__metadata__":{"a":1}})", 0, "unexpected a number");
    check_refused(R"({"__metadata__":{"a":{}}})", 0, "unexpected an object");
    check_refused(R"({"__metadata__":[]})", 0, "unexpected an array");
    const std::string deep(200'000, '[');
    check_refused(deep, 0, "not a JSON object");
    check_refused("{\"a\":{\"dtype\":" + deep, 0, "unexpected an array");
    std::string objects;
    for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
    check_refused(objects, 0, "unknown field");
  }
  SECTION("names") {
    const std::string a = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
    check_refused("{" + a + "," + a + "}", 1, "tensor \"a\": occurs twice");
    check_refused(R"({"__metadata__":{},"__metadata__":{}})", 0, "occurs twice");
    check_refused(R"({"__metadata__":{"a":"1","a":"2"}})", 0, "occurs twice");
    check_refused(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "occurs twice");
    const std::string long_name(100'000, 'n');
    try {
      open_header("{\"" + long_name + "\":0}", 0);
      FAIL("not refused");
    } catch (const SafetensorsError& error) {
      CHECK(std::string_view(error.what()).size() < 1000);
    }
  }
  SECTION("numbers") {
    const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
      return R"({"a":{"dtype":")" + dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + offsets + "]}}";
    };
    check_refused(tensor("F31", "2", "0,8"), 8, "tensor \"a\": unknown or unsupported dtype \"F31\"");
    check_refused(tensor("", "2", "0,8"), 8, "unknown or unsupported dtype");
    check_refused(tensor("F32", "-2", "0,8"), 8, "unexpected a negative number");
    check_refused(tensor("F32", "2.0", "0,8"), 8, "unexpected a fraction");
    check_refused(tensor("F32", "9223372036854775808", "0,8"), 8, "out of range");
    check_refused(tensor("F32", "99999999999999999999999", "0,8"), 8, "out of range");
    check_refused(tensor("F32", "1e999", "0,8"), 8, "sample: ");
    check_refused(tensor("F32", "4294967296,4294967296", "0,8"), 8, "is too large");
    check_refused(tensor("F32", "4294967296,4294967296,0", "0,0"), 0, "is too large");
    check_refused(tensor("F32", "4611686018427387904", "0,8"), 8, "doesn't fill");
    check_refused(tensor("F32", "4611686018427387906", "0,8"), 8, "doesn't fill");
    check_refused(tensor("F32", "3", "0,8"), 8, "tensor \"a\": shape [3] of F32 doesn't fill its 8 bytes");
    check_refused(tensor("F32", "", "0,8"), 8, "doesn't fill");
    check_refused(tensor("F32", "0", "0,8"), 8, "doesn't fill");
    check_refused(tensor("F32", "1", "0,7"), 7, "doesn't fill");
    check_refused(tensor("F64", "2", "0,8"), 8, "doesn't fill");
    check_refused(tensor("F32", "2", "0"), 8, "must be two numbers");
    check_refused(tensor("F32", "2", "0,8,8"), 8, "must be two numbers");
    check_refused(tensor("F32", "2", "8,0"), 8, "end before they begin");
    check_refused(tensor("F32", "2", "-8,0"), 8, "unexpected a negative number");
    check_refused(tensor("F32", "2", "8,16"), 8, "reach beyond the file");
    check_refused(tensor("F32", "2", "9223372036854775799,9223372036854775807"), 8, "reach beyond the file");
    check_refused(tensor("F32", "2", "4,12"), 12, "tensor \"a\": bytes before it belong to no tensor");
  }
  SECTION("layout") {
    const auto pair = [](const std::string& first, const std::string& second) {
      return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[)" + first +
             R"(]},"b":{"dtype":"U8","shape":[4],"data_offsets":[)" + second + "]}}";
    };
    CHECK(open_header(pair("0,4", "4,8"), 8).read<int>("b")[0] == 4);
    CHECK(open_header(pair("4,8", "0,4"), 8).read<int>("b")[0] == 0);
    check_refused(pair("0,4", "3,7"), 7, "tensor \"b\": overlaps");
    check_refused(pair("0,4", "0,4"), 4, "overlaps");
    check_refused(pair("0,4", "5,9"), 9, "tensor \"b\": bytes before it belong to no tensor");
  }
}

TEST_CASE("safetensors: files that can't be read or written are errors", "[io]") {
  CHECK_THROWS_MATCHES(SafetensorsFile("/nonexistent/file"), SafetensorsError,
                       MessageMatches(ContainsSubstring("/nonexistent/file: can't be opened")));
  CHECK_THROWS_AS(SafetensorsFile(std::filesystem::temp_directory_path().string()), SafetensorsError);
  CHECK_THROWS_AS(SafetensorsWriter().write("/nonexistent/file"), SafetensorsError);
  const TemporaryFile empty;
  std::fclose(std::fopen(empty.path.c_str(), "wb"));
  CHECK_THROWS_MATCHES(SafetensorsFile(empty.path), SafetensorsError, MessageMatches(ContainsSubstring("too short")));

  SafetensorsWriter writer;
  writer.add("a", {1}, std::vector<float>(1));
  CHECK_THROWS_AS(writer.add("a", {1}, std::vector<float>(1)), std::invalid_argument);
  CHECK_THROWS_AS(writer.add("b", {2}, std::vector<float>(1)), std::invalid_argument);
  CHECK_THROWS_AS(writer.add("b", {-1}, std::vector<float>(1)), std::invalid_argument);
  CHECK_THROWS_AS(writer.add("__metadata__", {1}, std::vector<float>(1)), std::invalid_argument);
  writer.add("\xFF", {1}, std::vector<float>(1));
  CHECK_THROWS_AS(writer.bytes(), std::invalid_argument);
}

/// Reads all that a file holds. Only SafetensorsError may come of it.
void read_everything(std::vector<std::byte> bytes) {
  try {
    const SafetensorsFile file(std::move(bytes), "sample");
    for (const auto& name : file.names()) {
      try {
        const auto numbers = file.read<float>(name);
        const auto matrix = file.matrix<double>(name);
        const auto vector = file.vector<float>(name);
        const auto integers = file.read<std::int16_t>(name);
      } catch (const SafetensorsError&) {
      }
    }
  } catch (const SafetensorsError&) {
  }
}

TEST_CASE("safetensors: mutated files are read or refused, nothing else", "[io]") {
  SafetensorsWriter writer;
  writer.set_metadata("key", "value");
  writer.add("a", {2, 1, 3}, std::vector<float>(6, 1.0f));
  writer.add("b", {4}, std::vector<double>(4, 2.0));
  writer.add("c", {1, 5}, std::vector<std::uint8_t>(5, 3));
  const auto original = writer.bytes();
  const std::string fragments[] = {"0",
                                   "9",
                                   "-",
                                   "18446744073709551615",
                                   "9223372036854775807",
                                   "1e400",
                                   "[",
                                   "]",
                                   "{",
                                   "}",
                                   "\"",
                                   ",",
                                   ":",
                                   "null",
                                   "F64",
                                   "BOOL",
                                   "\\u0000",
                                   "\xC3",
                                   "__metadata__",
                                   "[["};
  Rng rng(1);
  for (int round = 0; round < 20'000; ++round) {
    auto bytes = original;
    for (Index edit = rng.integer(1, 4); edit > 0; --edit) {
      // Mostly in the header, where the structure is.
      const Index limit = rng.integer(0, 3) > 0 ? std::min<Index>(Index(bytes.size()), 250) : Index(bytes.size());
      if (limit == 0) break;
      const Index place = rng.integer(0, limit - 1);
      const auto at = bytes.begin() + place;
      switch (rng.integer(0, 4)) {
        case 0:
          *at = std::byte(rng.bits());
          break;
        case 1:
          *at ^= std::byte(1u << rng.integer(0, 7));
          break;
        case 2:
          bytes.erase(at, at + rng.integer(0, std::min<Index>(8, Index(bytes.size()) - place)));
          break;
        case 3: {
          const auto& text = fragments[rng.integer(0, Index(std::size(fragments)) - 1)];
          const auto* const data = reinterpret_cast<const std::byte*>(text.data());
          if (rng.integer(0, 1) == 0) {
            bytes.insert(at, data, data + text.size());
          } else {
            std::copy_n(data, std::min(Index(text.size()), Index(bytes.size()) - place), at);
          }
          break;
        }
        default:
          bytes.resize(std::size_t(place));
          break;
      }
    }
    if (bytes.size() >= 8 && rng.integer(0, 1) == 0) {
      // Make the size of the header fit again, as far as its end can be found, so that more reaches the later checks.
      const auto end = std::find(bytes.rbegin(), bytes.rend(), std::byte('}'));
      const auto size = std::uint64_t(std::max<Index>(0, bytes.rend() - end - 8));
      for (std::size_t i = 0; i < 8; ++i) bytes[i] = std::byte(size >> (8 * i));
    }
    read_everything(std::move(bytes));
  }
}

}  // namespace
