package kit

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// Start starts a command that the kernel kills when this process ends, however it ends.
//
// The kernel takes "parent" to be the thread that forked (prctl(2), PR_SET_PDEATHSIG), and Go ends threads: one that was locked
// by a goroutine that entered a network namespace goes with that goroutine, and would take along every child it had ever started.
// So all of them are started by one thread that never ends.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err := make(chan error, 1)
	forks() <- func() { err <- cmd.Start() }
	return <-err
}

// forks returns the queue of the thread that forks.
var forks = sync.OnceValue(func() chan<- func() {
	queue := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range queue {
			f()
		}
	}()
	return queue
})
