package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// lock is held while a sandbox is brought up or taken down, so that two commands at once do not remove each other's
// work. It is an abstract unix socket (unix(7)): nothing on disk, and gone with the process however that ends.
func lock(d Dir) (unlock func(), err error) {
	l, err := net.Listen("unix", "@weft:"+string(d))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("another command is bringing the sandbox %q up or taking it down: wait for it, or use another --name", d.Name())
	}
	if err != nil {
		return nil, fmt.Errorf("locking the sandbox %q: %w", d.Name(), err)
	}
	return func() { l.Close() }, nil
}

// wrest waits for the lock, and ends what an "up" that holds it has started, so that it gives up.
func wrest(ctx context.Context, d Dir) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		unlock, err := lock(d)
		if err == nil {
			return unlock, nil
		}
		if d.Alive() {
			_ = NewClient(d).Shutdown(ctx) // when it fails, the next round tries again
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
