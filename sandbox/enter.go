package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/weft-mesh/weft/sandbox/show"
	"github.com/weft-mesh/weft/sandbox/store"
)

// Enter makes this process a command on the sandbox's node: it joins the
// node's network namespace, sees the cluster's DNS in /etc/resolv.conf, and becomes argv. It only
// returns when that fails.
func (d Dir) Enter(argv []string) error {
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("%s: command not found", argv[0])
	}
	o, err := d.loadOptions()
	if err != nil {
		return err
	}
	conf := d.path("resolv.conf")
	text := fmt.Sprintf("nameserver %s\nsearch default.svc.%s svc.%[2]s %[2]s\noptions ndots:5\n", o.IPFamily.plan().DNS[0], clusterDomain)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	runtime.LockOSThread() // exec replaces all threads by this one
	ns, err := os.Open(d.NetNS())
	if err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the node's network namespace: %w", err)
	}
	ns.Close()
	// A mount namespace of its own, so that only this command sees the cluster's DNS.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount(conf, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("mounting the cluster's resolv.conf: %w", err)
	}
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "KUBECONFIG=") && !strings.HasPrefix(e, "WEFT_SANDBOX=") {
			env = append(env, e)
		}
	}
	return unix.Exec(program, argv, append(env, "WEFT_SANDBOX="+d.Name(), "WEFT_SANDBOX_STATE="+string(d)))
}

// Parent is the directory that holds this and other sandboxes' state.
func (d Dir) Parent() string { return filepath.Dir(string(d)) }

// CleanAbandoned removes sandboxes below stateDir whose name is prefix + a
// process number, when neither that process nor a daemon is there any more.
func CleanAbandoned(ctx context.Context, stateDir, prefix string) error {
	var faults []error
	for _, name := range Names(stateDir) {
		var pid int
		if n, err := fmt.Sscanf(name, prefix+"%d", &pid); n != 1 || err != nil {
			continue
		}
		d := Dir(filepath.Join(stateDir, name))
		if !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || d.Alive() {
			continue
		}
		// When it is locked, another run is removing it right now.
		if unlock, err := lock(d); err == nil {
			faults = append(faults, Clean(ctx, d))
			unlock()
		}
	}
	return errors.Join(faults...)
}

// WaitGone returns when an object does not exist any more.
func (c *Client) WaitGone(ctx context.Context, k *store.Kind, ns, name string) error {
	q := Query{Kind: k, Namespace: ns, Name: name}
	objects, err := c.Get(ctx, q)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	uid := objects[0].GetUID()
	gone := errors.New("gone")
	// The watch begins with what exists then: when the object went in between, the list without it must end the wait.
	watch, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		if _, err := c.Get(watch, q); apierrors.IsNotFound(err) {
			stop(gone)
		}
	}()
	err = c.Watch(watch, q, func(e store.EventType, o store.Object) error {
		if e == store.Deleted || o.GetUID() != uid {
			return gone
		}
		return nil
	})
	if errors.Is(err, gone) || errors.Is(context.Cause(watch), gone) {
		return nil
	}
	return err
}

// WaitReady returns when every pod is Ready or has finished, every Deployment, StatefulSet and DaemonSet has rolled out,
// and every Job is over. When ctx ends before, the error says what is missing and why.
func (c *Client) WaitReady(ctx context.Context) error {
	var kinds []*store.Kind
	for _, w := range []string{"deployments", "statefulsets", "daemonsets", "pods"} {
		k, _ := store.Resource(w)
		kinds = append(kinds, k)
	}
	missing := func() (string, error) {
		for _, k := range kinds {
			objects, err := c.Get(ctx, Query{Kind: k})
			if err != nil {
				return "", err
			}
			for _, o := range objects {
				if p, ok := o.(*corev1.Pod); ok {
					if !ready(p) && p.Status.Phase != corev1.PodSucceeded {
						return fmt.Sprintf("pod %s/%s is %s", p.Namespace, p.Name, show.Pod(p, o.GetCreationTimestamp().Time).Status), nil
					}
				} else if text, done, err := show.Rollout(o); err == nil && !done {
					return text, nil
				}
			}
		}
		return "", nil
	}
	// Every change of one of these is a reason to look again.
	changed := make(chan struct{}, 1)
	watch, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, k := range kinds {
		go func() {
			stop(c.Watch(watch, Query{Kind: k}, func(store.EventType, store.Object) error {
				select {
				case changed <- struct{}{}:
				default:
				}
				return nil
			}))
		}()
	}
	last := "nothing is known yet"
	for {
		why, err := missing()
		switch {
		case err == nil && why == "":
			return nil
		case err == nil:
			last = why
		case ctx.Err() == nil:
			return err
		}
		select {
		case <-changed:
		case <-watch.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("not everything got Ready in time: %s; \"weft sandbox describe pods -A\" in a sandbox that stays up says more", last)
			}
			return context.Cause(watch)
		}
	}
}
