// The README's table of operators against what is registered with the tests, and its example against the compiled one.

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <seqmix/core/mixer.hpp>
#include <set>
#include <sstream>
#include <string>

#include "support/registry.hpp"

namespace seqmix::test {
namespace {

const std::filesystem::path root = std::filesystem::path(SEQMIX_GOLDEN_DIRECTORY) / ".." / "..";

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path);
  REQUIRE(file);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The rows "| `operator` | ... |" of the table, by operator.
std::map<std::string, std::string> table_rows() {
  std::map<std::string, std::string> rows;
  std::stringstream readme(contents(root / "README.md"));
  for (std::string line; std::getline(readme, line);) {
    if (!line.starts_with("| `")) continue;
    rows[line.substr(3, line.find('`', 3) - 3)] = line;
  }
  return rows;
}

TEST_CASE("the README lists every registered mixer with the growth of its state") {
  const auto rows = table_rows();
  for (const MixerEntry& entry : mixer_registry()) {
    const auto mixer = entry.make<double>(0).mixer;
    const std::string name(mixer->name());
    INFO(
        name << ": the table of operators in README.md needs a row for it, whose last column begins with the growth of "
             << "its state (constant:, window: or linear:)");
    REQUIRE(rows.contains(name));
    if (!mixer->recurrent()) continue;
    const std::string growth = mixer->growth() == StateGrowth::constant ? "constant:"
                               : mixer->growth() == StateGrowth::window ? "window:"
                                                                        : "linear:";
    CHECK(rows.at(name).find("| " + growth) != std::string::npos);
  }
}

TEST_CASE("the README and seqmix.hpp list every operator header, and no other") {
  const auto rows = table_rows();
  const std::string umbrella = contents(root / "include" / "seqmix" / "seqmix.hpp");
  std::size_t listed = 0;
  const std::set<std::string> not_families = {"core", "simd", "parts", "engine", "io"};
  for (const auto& directory : std::filesystem::directory_iterator(root / "include" / "seqmix")) {
    const std::string family = directory.path().filename().string();
    if (!directory.is_directory() || not_families.contains(family)) continue;
    for (const auto& file : std::filesystem::directory_iterator(directory)) {
      const std::string path = family + "/" + file.path().filename().string(), header = "`" + path + "`";
      {
        INFO(path << ": seqmix.hpp needs a line for it");
        CHECK(umbrella.find("#include <seqmix/" + path + ">") != std::string::npos);
      }
      bool found = false;
      for (const auto& [name, row] : rows) found = found || row.find(header) != std::string::npos;
      INFO(path << ": the table of operators in README.md needs a row for it");
      CHECK(found);
      ++listed;
    }
  }
  std::size_t named = 0;
  for (const auto& [name, row] : rows) {
    for (std::size_t at = row.find(".hpp`"); at != std::string::npos; at = row.find(".hpp`", at + 1)) ++named;
  }
  INFO("a header has no row, a row names one that is not there, or the same is named twice");
  CHECK(named == listed);
}

TEST_CASE("the README's example is the compiled one") {
  std::stringstream source(contents(root / "examples" / "quick_start.cpp"));
  std::string example;
  bool inside = false;
  for (std::string line; std::getline(source, line);) {
    if (line.ends_with("README ends")) inside = false;
    if (inside) example += line + "\n";
    if (line.ends_with("README begins")) inside = true;
  }
  REQUIRE(!example.empty());
  CHECK(contents(root / "README.md").find(example) != std::string::npos);
}

}  // namespace
}  // namespace seqmix::test
