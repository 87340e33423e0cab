package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// postStart runs the hook and reports whether the container may live on. When it may not, it is killed.
func (c *container) postStart(ctx context.Context, in *instance) bool {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PostStart == nil {
		return true
	}
	err := c.hook(ctx, in, c.spec.Lifecycle.PostStart)
	if err == nil {
		return true
	}
	select {
	case <-in.done:
		// The container ended under its hook; that is what is shown.
		return false
	default:
	}
	// kubelet leaves the hook's output out on purpose: events are read by more people than logs.
	c.w.event(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
	c.w.r.log.Debug("postStart hook failed", "pod", c.w.name(), "container", c.spec.Name, "error", err)
	c.w.event(corev1.EventTypeNormal, "Killing", "Container %s failed postStart hook", c.spec.Name)
	c.kill(in, time.Now().Add(in.grace), nil)
	return false
}

func (c *container) preStop(ctx context.Context, in *instance) {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PreStop == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-in.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := c.hook(ctx, in, c.spec.Lifecycle.PreStop); err != nil && ctx.Err() == nil {
		c.w.event(corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
		c.w.r.log.Debug("preStop hook failed", "pod", c.w.name(), "container", c.spec.Name, "error", err)
	}
}

func (c *container) hook(ctx context.Context, in *instance, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		var out bytes.Buffer
		code, err := in.exec(ctx, h.Exec.Command, nil, &out, &out)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, out.String())
		}
		return nil
	case h.HTTPGet != nil:
		// One request, no retry, and any answer is a good one (kubelet: handlerRunner.runHTTPHandler).
		_, err := c.get(ctx, h.HTTPGet, 0)
		return err
	case h.Sleep != nil:
		if !wait(ctx, time.Duration(h.Sleep.Seconds)*time.Second) {
			return ctx.Err()
		}
		return nil
	}
	return errors.New("the hook names no handler (exec, httpGet or sleep)")
}
