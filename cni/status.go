package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/redirect"
)

// Status says whether an ADD would work now (CNI spec 1.1 section 4, STATUS): it redirects a network namespace that exists only for this
// call, reads the rules back, and looks whether it would learn about a pod at all.
func Status(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	if err := errors.Join(redirect.Try(conf.backend(), redirect.Default()), tryState(conf), trySource(conf)); err != nil {
		return fail(types.ErrPluginNotAvailable, pod{}, err)
	}
	return nil
}

func tryState(conf Conf) error {
	if err := os.MkdirAll(conf.StateDir, 0o700); err != nil {
		return fmt.Errorf("stateDir: %w", err)
	}
	if err := unix.Access(conf.StateDir, unix.W_OK); err != nil {
		return fmt.Errorf("stateDir %s: %w", conf.StateDir, err)
	}
	return nil
}

// trySource: without annotations and without an agent, each ADD of a Kubernetes pod would fail.
func trySource(conf Conf) error {
	if conf.Capabilities[CapabilityAnnotations] {
		return nil
	}
	if conf.AgentSocket == "" {
		return fmt.Errorf("no way to learn whether a pod is injected: conflist %q asks for no capability %q and names no agentSocket", conf.Name, CapabilityAnnotations)
	}
	c, err := net.DialTimeout("unix", conf.AgentSocket, time.Second)
	if err != nil {
		return fmt.Errorf("the node agent does not answer: %w", err)
	}
	return c.Close()
}
