// Plain C names that ctypes calls.
#pragma once

#ifdef _WIN32
#define NYBBLE_EXPORT extern "C" __declspec(dllexport)
#else
#define NYBBLE_EXPORT extern "C" __attribute__((visibility("default")))
#endif
