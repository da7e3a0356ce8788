// The part of Jinja (https://jinja.palletsprojects.com/en/stable/templates) that chat templates are
// written in, with the settings that Transformers uses: trim_blocks, lstrip_blocks, no trailing
// newline kept.
//
// Known: {{ }}, {% for/else, if/elif/else, set, generation %}, {# #}, white space control;
// literals, arithmetic, comparisons, in, and/or/not, x if y else z, attributes, items, slices, ~;
// the tests, filters and methods listed in jinja_library.cpp. Anything else is a FormatError that
// names it: a construct when the template is parsed, a function or filter when it is reached.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace lowbit::text {

/// The text of `source` with the variables of the object `context`. `file` stands for the template
/// in errors.
std::string render_jinja(const std::string& source, const nlohmann::json& context,
                         const std::string& file);

}  // namespace lowbit::text
