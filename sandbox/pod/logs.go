package pod

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/sandbox/pod/inside"
)

const (
	// logLimit is how large a log file grows before it is set aside (kubelet: containerLogMaxSize). One is kept beside
	// the current one.
	logLimit = 10 << 20
	// lineLimit is the longest line in one piece; longer ones are written in parts, marked P (CRI log format).
	lineLimit = 16 << 10
	// drainTime is how long the output of a process that is gone may still come, from processes that it left behind.
	drainTime = 2 * time.Second
)

// logFile takes what one instance of a container writes, in CRI's format: time, stream, F or P, line.
type logFile struct {
	path    string
	readers sync.WaitGroup

	mu      sync.Mutex
	file    *os.File
	size    int64
	turned  int           // how often the file was set aside
	more    chan struct{} // closed and replaced when something was written
	over    bool          // nothing more comes
	streams []*os.File
}

// openLog makes the log of instance number n, and removes those before the previous one.
func openLog(dir string, n int32) (*logFile, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for i := n - 2; i >= 0; i-- {
		path := filepath.Join(dir, strconv.Itoa(int(i))+".log")
		if os.Remove(path) != nil {
			break
		}
		_ = os.Remove(path + ".1")
	}
	l := &logFile{path: filepath.Join(dir, strconv.Itoa(int(n))+".log"), more: make(chan struct{})}
	var err error
	l.file, err = os.Create(l.path)
	return l, err
}

// launch starts a process whose output goes to the log.
func (l *logFile) launch(spec inside.Spec, pidNS string) (*process, error) {
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer outW.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outR.Close()
		return nil, err
	}
	defer errW.Close()
	p, err := launch(spec, pidNS, nil, outW, errW)
	if err != nil {
		outR.Close()
		errR.Close()
		return nil, err
	}
	l.streams = []*os.File{outR, errR}
	l.readers.Go(func() { l.copy("stdout", outR) })
	l.readers.Go(func() { l.copy("stderr", errR) })
	return p, nil
}

func (l *logFile) copy(stream string, from *os.File) {
	defer from.Close()
	r := bufio.NewReaderSize(from, lineLimit)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			tag := "F"
			if errors.Is(err, bufio.ErrBufferFull) {
				tag = "P"
			}
			l.write(stream, tag, bytes.TrimSuffix(line, []byte("\n")))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (l *logFile) write(stream, tag string, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	record := make([]byte, 0, len(line)+48)
	record = time.Now().UTC().AppendFormat(record, "2006-01-02T15:04:05.000000000Z07:00")
	record = append(record, ' ')
	record = append(record, stream...)
	record = append(record, ' ')
	record = append(record, tag...)
	record = append(record, ' ')
	record = append(record, line...)
	record = append(record, '\n')
	n, _ := l.file.Write(record)
	l.size += int64(n)
	if l.size >= logLimit && tag == "F" {
		l.turn()
	}
	close(l.more)
	l.more = make(chan struct{})
}

// turn sets the file aside. When that fails the file grows on.
func (l *logFile) turn() {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return
	}
	next, err := os.Create(l.path)
	if err != nil {
		return
	}
	l.file.Close()
	l.file, l.size = next, 0
	l.turned++
}

// end waits for the rest of the output and closes the log.
func (l *logFile) end() {
	// The readers end by themselves when all writers are gone, which the end of a PID namespace guarantees. In a shared
	// one a process may outlive its container and would hold the pipe.
	timer := time.AfterFunc(drainTime, func() {
		for _, s := range l.streams {
			s.Close()
		}
	})
	l.readers.Wait()
	timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.file.Close()
	close(l.more)
	l.more = nil
}

// tail returns the text of the last lines, of so many bytes at most.
func (l *logFile) tail(lines int, size int) string {
	data, err := os.ReadFile(l.path)
	if err != nil {
		return ""
	}
	data = lastLines(data, lines)
	var out []byte
	for record := range bytes.Lines(data) {
		if _, text, ok := parseRecord(record); ok {
			out = append(out, text...)
		}
	}
	return string(out[max(0, len(out)-size):])
}

func lastLines(data []byte, n int) []byte {
	at := len(data)
	for ; n > 0 && at > 0; n-- {
		at = bytes.LastIndexByte(data[:at-1], '\n') + 1
	}
	return data[at:]
}

// parseRecord splits a line of the file; text ends with a newline unless it goes on in the next record.
func parseRecord(record []byte) (at time.Time, text []byte, ok bool) {
	fields := bytes.SplitN(record, []byte(" "), 4)
	if len(fields) != 4 {
		return time.Time{}, nil, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return time.Time{}, nil, false
	}
	text = fields[3]
	if string(fields[2]) == "P" {
		text = bytes.TrimSuffix(text, []byte("\n"))
	}
	return at, text, true
}

// Logs writes what a container wrote. With Follow it returns when the instance has ended, or with ctx's error.
// A container that has not run yet is an error that says what it waits for.
func (r *Runner) Logs(ctx context.Context, uid types.UID, container string, o LogOptions, w io.Writer) error {
	worker, err := r.worker(uid)
	if err != nil {
		return err
	}
	c, err := worker.container(container)
	if err != nil {
		return err
	}
	worker.mu.Lock()
	in, former, state := c.current, c.former, c.state
	if state.Waiting != nil && c.last.Terminated != nil && in != nil {
		// In back-off the last instance is both: `kubectl logs --previous` shows the crash, and so does `kubectl logs`.
		former = in
	}
	worker.mu.Unlock()
	if o.Previous {
		if former == nil {
			return fmt.Errorf("previous terminated container %q in pod %q %w", container, worker.pod.Name, ErrNotFound)
		}
		in = former
	}
	if in == nil {
		reason := "ContainerCreating"
		if state.Waiting != nil {
			reason = state.Waiting.Reason
			if state.Waiting.Message != "" {
				reason += ": " + state.Waiting.Message
			}
		}
		if state.Terminated != nil {
			reason = state.Terminated.Reason + ": " + state.Terminated.Message
		}
		return fmt.Errorf("container %q in pod %q is waiting to start: %s", container, worker.pod.Name, reason)
	}
	return in.log.stream(ctx, o, w)
}

func (w *worker) container(name string) (*container, error) {
	var names []string
	for _, c := range w.every() {
		if c.spec.Name == name {
			return c, nil
		}
		names = append(names, c.spec.Name)
	}
	return nil, fmt.Errorf("pod %s: container %q: %w; it has %s", w.name(), name, ErrNotFound, strings.Join(names, ", "))
}

// stream copies the log from the beginning, or the last lines, and goes on if asked to.
func (l *logFile) stream(ctx context.Context, o LogOptions, w io.Writer) error {
	l.mu.Lock()
	old, _ := os.ReadFile(l.path + ".1")
	file, err := os.Open(l.path)
	if err != nil {
		l.mu.Unlock()
		return err
	}
	defer func() { file.Close() }()
	current, err := io.ReadAll(file)
	turned, more := l.turned, l.more
	l.mu.Unlock()
	if err != nil {
		return err
	}
	data := append(old, current...)
	if o.Tail != nil {
		data = lastLines(data, int(max(0, *o.Tail)))
	}
	out := &logWriter{o: o, w: w, fresh: true}
	if err := out.records(data); err != nil || !o.Follow {
		return err
	}
	for more != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		}
		l.mu.Lock()
		data, err := io.ReadAll(file)
		if err == nil && l.turned != turned {
			// What was read is the end of the file that was set aside; at most one is missed when lines come faster
			// than they are taken.
			file.Close()
			if file, err = os.Open(l.path); err == nil {
				var next []byte
				next, err = io.ReadAll(file)
				data = append(data, next...)
			}
		}
		turned, more = l.turned, l.more
		l.mu.Unlock()
		if err != nil {
			return err
		}
		if err := out.records(data); err != nil {
			return err
		}
	}
	return nil
}

// logWriter turns records into what a user sees.
type logWriter struct {
	o     LogOptions
	w     io.Writer
	fresh bool // at the beginning of a line
}

func (lw *logWriter) records(data []byte) error {
	for record := range bytes.Lines(data) {
		at, text, ok := parseRecord(record)
		if !ok || at.Before(lw.o.Since) {
			continue
		}
		if lw.o.Timestamps && lw.fresh {
			if _, err := io.WriteString(lw.w, at.Format(time.RFC3339Nano)+" "); err != nil {
				return err
			}
		}
		if _, err := lw.w.Write(text); err != nil {
			return err
		}
		lw.fresh = bytes.HasSuffix(text, []byte("\n"))
	}
	return nil
}
