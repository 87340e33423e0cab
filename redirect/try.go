package redirect

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Try says whether b can do what s wants on this kernel: it applies s in a network namespace that exists only for this call, and reads the rules back. It
// needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
func Try(b Backend, s Spec) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the namespace goes with the thread
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace to try the rules in: %w", err)
			}
			if err := b.Apply(s); err != nil {
				return fmt.Errorf("redirection does not work on this node: %w", err)
			}
			drift, err := b.Verify(s)
			if err == nil && len(drift) > 0 {
				err = errors.New(strings.Join(drift[:min(3, len(drift))], "; "))
			}
			if err != nil {
				return fmt.Errorf("redirection does not work on this node: rules read back: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}
