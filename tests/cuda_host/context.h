// A switch between fibers: a few instructions on x86-64, ucontext elsewhere.
#pragma once
#include <cstddef>
#include <cstdint>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

#if defined(__x86_64__)
extern "C" void emu_switch(void** save, void* to);

struct Context {
  void* stack_pointer = nullptr;

  void make(char* stack, size_t bytes, void (*entry)()) {
    void** top =
        reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
    *--top =
        nullptr;  // a return address that is never used keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // callee-saved registers
    stack_pointer = top;
  }
  void switch_to(Context& to) { emu_switch(&stack_pointer, to.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;

  void make(char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& to) { swapcontext(&context, &to.context); }
};
#endif

}  // namespace emu
