// Package nstest makes network namespaces for tests. Each lives as long as one thread of the test process, so nothing is left
// behind however a test ends: no mount, no name, no process.
package nstest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// NS is a network namespace with its loopback interface up.
type NS struct {
	Path string // of the namespace, valid for other processes too, until the test ends
	FD   int
	work chan func()
}

// New makes a namespace that is gone when the test ends. It needs root.
func New(t testing.TB) *NS {
	t.Helper()
	n := &NS{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.Path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
			n.FD, err = unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err == nil {
			err = loopbackUp()
		}
		ready <- err
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { close(n.work); unix.Close(n.FD) })
	return n
}

// Do runs f inside the namespace, on its thread. Sockets that f opens stay there, and processes that it starts run there.
func (n *NS) Do(f func()) {
	done := make(chan struct{})
	n.work <- func() { defer close(done); f() }
	<-done
}

// As runs f inside the namespace as another owner of sockets. The kernel's rules look at the filesystem UID and GID with which a socket was
// opened, which a thread can change for itself alone.
func (n *NS) As(uid, gid int, f func()) {
	n.Do(func() {
		owner(uid, gid)
		defer owner(0, 0)
		f()
	})
}

func owner(uid, gid int) {
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}
