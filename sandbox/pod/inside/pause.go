package inside

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// pause is PID 1 of containers that share a PID namespace: it collects orphans and holds the namespace, whose
// processes all die with it.
func pause() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_PDEATHSIG: %w", err)
	}
	if orphaned() {
		return errors.New("the process that started this pod is gone")
	}
	// The parent learns that the namespace is ready.
	unix.Close(ErrorFD)
	// Children of others arrive here when their parents die. SIGCHLD is blocked for the kernel's queue, not handled,
	// so that waiting costs no thread but this one.
	var set unix.Sigset_t
	set.Val[0] = 1 << (uint(unix.SIGCHLD) - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
		return err
	}
	for {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
		fds := []unix.PollFd{{Fd: SpecFD}}
		// The pipe from the parent only ever hangs up; the second is how long an orphan stays a zombie.
		if _, err := unix.Poll(fds, 1000); err == nil && fds[0].Revents&unix.POLLHUP != 0 {
			unix.Exit(0)
		}
	}
}
