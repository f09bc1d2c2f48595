#include "textflag.h"

// sigNothing is a signal handler that does nothing. It is no Go function: it runs on whatever the thread was doing.
TEXT sigNothing<>(SB), NOSPLIT|NOFRAME, $0-0
	RET

// sigReturn is where a handler returns to: rt_sigreturn(2), number 139.
TEXT sigReturn<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVD $139, R8
	SVC
	BRK

GLOBL ·sigNothingAddr(SB), RODATA, $8
DATA ·sigNothingAddr(SB)/8, $sigNothing<>(SB)

GLOBL ·sigReturnAddr(SB), RODATA, $8
DATA ·sigReturnAddr(SB)/8, $sigReturn<>(SB)
