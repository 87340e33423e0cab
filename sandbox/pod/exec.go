package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/sandbox/pod/inside"
)

// Exec runs argv in a running container, as `kubectl exec` does: in its namespaces, with its variables, user,
// capabilities and working directory. Any of the streams may be nil. It returns the program's exit code, 128+N after
// signal N; err is about not having run it, or ctx having ended, which kills it. There is no terminal.
func (r *Runner) Exec(ctx context.Context, uid types.UID, container string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (exitCode int, err error) {
	w, err := r.worker(uid)
	if err != nil {
		return -1, err
	}
	c, err := w.container(container)
	if err != nil {
		return -1, err
	}
	w.mu.Lock()
	in, running := c.current, c.state.Running != nil
	w.mu.Unlock()
	if !running {
		return -1, fmt.Errorf("pod %s: container %s is not running", w.name(), container)
	}
	code, err := in.exec(ctx, argv, stdin, stdout, stderr)
	if err != nil {
		err = fmt.Errorf("pod %s: container %s: %w", w.name(), container, err)
	}
	return code, err
}

// exec runs argv beside the instance's program.
func (in *instance) exec(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	if len(argv) == 0 {
		return -1, errors.New("no command to execute")
	}
	proc := fmt.Sprintf("/proc/%d/ns/", in.pid)
	spec := in.spec
	spec.Mode = inside.Join
	spec.Argv = argv
	spec.Root = inside.Root{}
	// The mount namespace comes last: after it the others' files are out of sight.
	spec.Namespaces = []inside.Namespace{
		{Path: proc + "net", Flag: unix.CLONE_NEWNET}, {Path: proc + "ipc", Flag: unix.CLONE_NEWIPC},
		{Path: proc + "uts", Flag: unix.CLONE_NEWUTS}, {Path: proc + "mnt", Flag: unix.CLONE_NEWNS},
	}
	var s streams
	defer s.close()
	inR, err := s.source(stdin)
	if err != nil {
		return -1, err
	}
	outW, err := s.sink(stdout)
	if err != nil {
		return -1, err
	}
	errW := outW
	// One writer for both gets one stream, as with os/exec: it need not be made for concurrent calls.
	if !sameWriter(stdout, stderr) {
		if errW, err = s.sink(stderr); err != nil {
			return -1, err
		}
	}
	p, err := launch(spec, proc+"pid", inR, outW, errW)
	s.handOver()
	if err != nil {
		s.drain()
		return -1, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.signal(unix.SIGKILL)
		<-p.done
		s.drain()
		return -1, ctx.Err()
	}
	s.drain()
	return p.code, nil
}

func sameWriter(a, b io.Writer) (same bool) {
	// Comparing two values of a type that cannot be compared panics.
	defer func() { _ = recover() }()
	return a == b
}

// streams connects readers and writers to pipes, since a process can only be given files.
type streams struct {
	theirs []*os.File // the process's ends
	ours   []*os.File
	out    sync.WaitGroup
}

func (s *streams) source(from io.Reader) (*os.File, error) {
	if from == nil {
		return nil, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.theirs = append(s.theirs, r)
	// Nobody waits for it: a reader that never ends, such as a terminal, must not keep Exec from returning.
	go func() {
		defer w.Close()
		_, _ = io.Copy(w, from)
	}()
	return r, nil
}

func (s *streams) sink(to io.Writer) (*os.File, error) {
	if to == nil {
		return nil, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.theirs, s.ours = append(s.theirs, w), append(s.ours, r)
	s.out.Go(func() { _, _ = io.Copy(to, r) })
	return w, nil
}

// handOver closes the process's ends here, so that the pipes end with it.
func (s *streams) handOver() {
	for _, f := range s.theirs {
		f.Close()
	}
	s.theirs = nil
}

// drain waits for the rest of the output, but not for processes that were left in the background and hold the pipe.
func (s *streams) drain() {
	timer := time.AfterFunc(drainTime, func() {
		for _, f := range s.ours {
			f.Close()
		}
	})
	s.out.Wait()
	timer.Stop()
}

func (s *streams) close() {
	s.handOver()
	for _, f := range s.ours {
		f.Close()
	}
}
