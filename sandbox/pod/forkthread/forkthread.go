// Package forkthread forks children from one OS thread that never ends before the program does. The kernel kills a child that asked
// for it when the *thread* that forked it ends (prctl(2), PR_SET_PDEATHSIG), and Go's threads come and go: one that was locked by a
// goroutine that entered a network namespace goes with that goroutine, and would take along every child it had ever forked.
package forkthread

import (
	"runtime"
	"sync"
)

// Do runs f on the thread and returns its error. f starts a process and no more: others wait for the thread meanwhile.
func Do(f func() error) error {
	result := make(chan error, 1)
	jobs() <- func() { result <- f() }
	return <-result
}

var jobs = sync.OnceValue(func() chan<- func() {
	queue := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range queue {
			job()
		}
	}()
	return queue
})
