package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Pod is what the plugin asks about.
type Pod struct {
	Namespace, Name, UID string
	Redirect             string // the annotation redirect.Annotation, if Injected
	Injected             bool
	HostNetwork          bool
}

// Pods knows the pods of this node.
type Pods interface {
	// Pod finds a pod by name. With a uid, another pod of the same name (an earlier one of a StatefulSet) is not it. A pod that is not
	// known yet is waited for until ctx ends; the error then says what was done to find it.
	Pod(ctx context.Context, namespace, name, uid string) (Pod, error)
}

// Answers is the other side of the plugin's questions: see agent.go of package cni for the protocol. Only root may ask, which the kernel
// vouches for; root of a user namespace is somebody else.
type Answers struct {
	Socket            string // path; its directory is made
	Pods              Pods
	Gates             *Gates
	ExcludeNamespaces []string
	Log               *slog.Logger
	Metrics           *Metrics
}

const (
	questionTimeout = 4500 * time.Millisecond // the plugin gives up after five seconds
	lookTimeout     = 4 * time.Second
	strangerTimeout = 200 * time.Millisecond
	maxQuestion     = 64 << 10
	maxQuestions    = 256 // at a time
)

type question struct {
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	UID         string `json:"uid"`
	ContainerID string `json:"containerID"`
	NetNS       string `json:"netns"`
	Gate        uint16 `json:"gate"`
}

type answer struct {
	Redirect *string `json:"redirect"`
}

type refusal struct {
	Error string `json:"error"`
}

// Serve answers until ctx ends. A socket that an earlier agent left is replaced without a moment in which there is none.
func (a *Answers) Serve(ctx context.Context) error {
	l, err := listen(a.Socket)
	if err != nil {
		return fmt.Errorf("the plugin's socket %s: %w", a.Socket, err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	slots := make(chan struct{}, maxQuestions)
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			// Too many open files, for one: it may pass.
			a.Log.Warn("the plugin's socket", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		slots <- struct{}{}
		open.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			a.one(ctx, c)
		})
	}
}

// listen binds beside the path and moves the socket there.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temporary); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // a newer agent's socket may have taken the path
	if err = os.Chmod(temporary, 0o600); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temporary))
	}
	return l, nil
}

func (a *Answers) one(ctx context.Context, c *net.UnixConn) {
	outcome, reply := a.reply(ctx, c)
	a.Metrics.questions.WithLabelValues(outcome).Inc()
	if err := json.NewEncoder(c).Encode(reply); err != nil {
		a.Log.Debug("the plugin did not wait for its answer", "error", err)
	}
}

func (a *Answers) reply(ctx context.Context, c *net.UnixConn) (outcome string, reply any) {
	if err := c.SetDeadline(time.Now().Add(questionTimeout)); err != nil {
		return "error", refusal{err.Error()}
	}
	uid, err := peer(c)
	if err != nil {
		return "error", refusal{"who asks: " + err.Error()}
	}
	if uid != 0 {
		// What they sent is read all the same, or they would see a broken pipe and not the answer; but they may not keep us long.
		if err := c.SetReadDeadline(time.Now().Add(strangerTimeout)); err == nil {
			_, _ = bufio.NewReader(io.LimitReader(c, maxQuestion)).ReadBytes('\n')
		}
		a.Log.Warn("somebody who is not root asked about a pod", "uid", uid)
		return "refused", refusal{fmt.Sprintf("only root may ask, not user %d", uid)}
	}
	var q question
	line, err := bufio.NewReader(io.LimitReader(c, maxQuestion)).ReadBytes('\n')
	if err == nil || errors.Is(err, io.EOF) && len(line) > 0 {
		err = json.Unmarshal(line, &q)
	}
	if err != nil || q.Namespace == "" || q.Name == "" {
		return "error", refusal{fmt.Sprintf("the question is not one line of JSON with namespace and name (%v)", err)}
	}
	if q.Gate != 0 {
		return a.gate(q)
	}
	return a.find(ctx, q)
}

func (a *Answers) gate(q question) (outcome string, reply any) {
	s := Sandbox{ID: q.ContainerID, Namespace: q.Namespace, Name: q.Name, UID: q.UID, NetNS: q.NetNS}
	if err := a.Gates.Open(s, q.Gate); err != nil {
		return "error", refusal{strings.ReplaceAll(err.Error(), "\n", " ")}
	}
	return "gate", answer{}
}

func (a *Answers) find(ctx context.Context, q question) (outcome string, reply any) {
	if slices.Contains(a.ExcludeNamespaces, q.Namespace) {
		return "excluded", answer{}
	}
	ctx, stop := context.WithTimeout(ctx, lookTimeout)
	defer stop()
	p, err := a.Pods.Pod(ctx, q.Namespace, q.Name, q.UID)
	if err != nil {
		return "unknown", refusal{strings.ReplaceAll(fmt.Sprintf("pod %s/%s: %v", q.Namespace, q.Name, err), "\n", " ")}
	}
	if !p.Injected || p.HostNetwork {
		return "pass", answer{}
	}
	return "redirect", answer{&p.Redirect}
}

// peer is the user that connected, as seen from our user namespace.
func peer(c *net.UnixConn) (uid uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if ctlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); ctlErr != nil {
		return 0, ctlErr
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}
