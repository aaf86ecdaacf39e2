// One binary for every machine: a function marked LMLAB_MULTIVERSION is compiled for several instruction
// sets and the loader takes the best that the processor has. It must be a plain (non-template) function;
// the templates that it calls must be LMLAB_INLINE, so that they are compiled anew inside each version.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && (defined(__GNUC__) && !defined(__clang__))
#define LMLAB_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#elif defined(__x86_64__) && defined(__linux__) && defined(__clang__) && __clang_major__ >= 17
#define LMLAB_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define LMLAB_MULTIVERSION
#endif

#if defined(__GNUC__) || defined(__clang__)
#define LMLAB_INLINE inline __attribute__((always_inline))
#else
#define LMLAB_INLINE inline
#endif
