package node

import (
	"context"
	"time"
)

// resync is how often the installation is looked at although nothing was heard of a change.
const resync = 30 * time.Second

// Keep installs, and installs again whenever somebody changes the runtime's directories, until ctx ends. It undoes nothing then: pods that are made while an agent
// restarts are redirected all the same. told gets the report of every pass, and the error of one that failed, which is tried again soon.
func (n *Installation) Keep(ctx context.Context, told func(Report, error)) error {
	changes, err := Watch(ctx, n.ConfDir, n.BinDir)
	if err != nil {
		return err
	}
	again := time.NewTimer(resync)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		case <-again.C:
		}
		if ctx.Err() != nil {
			return nil
		}
		r, err := n.Install()
		told(r, err)
		switch {
		case r.Soon:
			again.Reset(50 * time.Millisecond)
		case err != nil:
			again.Reset(time.Second)
		default:
			again.Reset(resync)
		}
	}
}
