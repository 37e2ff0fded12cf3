#pragma once

#include <string>

namespace sagd {

// How the transform of a length is factored, for people: "8 x 4", "3 x 61 by Rader (12 x 5)".
std::string describe_plan(int length);

}  // namespace sagd
