package node

import (
	"errors"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// listen tells r.changed when somebody changes nftables rules in the sandbox: one socket and one sleeping goroutine a pod, no polling. Without it (an
// old kernel, rules of iptables-legacy) drift is found by the next look all the same.
//
// The socket keeps the namespace alive, so it is closed as soon as the runtime no longer lists the sandbox.
func (r *Repairs) listen(w *watched) (stop func()) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(w.ns.Fd()), Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		r.Log.Debug("cannot listen to changes of rules", "pod", w.Namespace+"/"+w.Name, "error", err)
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		for {
			_, err := c.Receive()
			select {
			case <-done:
				return
			case r.changed <- w.ID:
			}
			if err != nil && !isOverflow(err) {
				return
			}
		}
	}()
	return func() {
		close(done)
		_ = c.Close()
	}
}

// isOverflow says that there were more changes than the socket's buffer holds, which says enough.
func isOverflow(err error) bool { return errors.Is(err, unix.ENOBUFS) }
