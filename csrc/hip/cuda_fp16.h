#pragma once
#include "hip/compat.h"
