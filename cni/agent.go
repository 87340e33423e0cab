package cni

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// The protocol is one line of JSON each way over a unix stream socket. Whether a pod is injected is asked only where the container runtime passes no
// annotations:
//
//	-> {"namespace":"shop","name":"cart-1","uid":"...","containerID":"...","netns":"/run/netns/..."}
//	<- {"redirect":"{\"mode\":\"REDIRECT\",...}"}   injected: the value of the pod's weft.dev/redirect annotation
//	<- {"redirect":null}                             known, and not injected
//	<- {"error":"pod shop/cart-1 is unknown to ..."} not known: ADD fails and kubelet tries again
//
// With "gate" the agent is told that the pod's start waits for its proxy, whose health is told on this port (redirect.Spec, Gate):
//
//	-> {"namespace":"shop","name":"cart-1","uid":"...","containerID":"...","netns":"/run/netns/...","gate":15021}
//	<- {"redirect":null}                             it answers kubelet in the proxy's place until the proxy can
//
// The agent closes the connection after its line. Fields that either side does not know are ignored.
type agentRequest struct {
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	UID         string `json:"uid"`
	ContainerID string `json:"containerID"`
	NetNS       string `json:"netns"`
	Gate        uint16 `json:"gate,omitempty"`
}

type agentResponse struct {
	Redirect *string `json:"redirect"`
	Error    string  `json:"error"`
}

const (
	// agentTimeout is for the whole exchange. The agent answers from memory, or waits a little for a pod that its watch has not seen yet.
	agentTimeout = 5 * time.Second
	// gateTimeout is what ADD spends on telling the agent about a gate. An agent that does not take it costs the pod a second later on, and no more.
	gateTimeout = 300 * time.Millisecond
)

// maxAgentLine is more than the API server allows all annotations of a pod to have together (256 KiB), as JSON in JSON.
const maxAgentLine = 1 << 20

// askAgent gives the value of the pod's redirect annotation. Any doubt is an error, so that the ADD fails.
func askAgent(socket string, q agentRequest) (text string, injected bool, err error) {
	a, err := exchange(socket, q, agentTimeout)
	switch {
	case err != nil:
		err = fmt.Errorf("ask the node agent at %s whether it is injected (the container runtime passed no pod annotations): %w", socket, err)
	case a.Error != "":
		err = fmt.Errorf("the node agent at %s: %s", socket, a.Error)
	case a.Redirect != nil:
		return *a.Redirect, true, nil
	default:
		return "", false, nil
	}
	return "", false, types.NewError(types.ErrTryAgainLater, err.Error(), "")
}

// tellGate asks the node agent to answer kubelet in the place of the pod's proxy. The error is for the log: without an agent the pod's own rules hold
// kubelet's request back, for a second at a time.
func tellGate(socket string, q agentRequest) error {
	a, err := exchange(socket, q, gateTimeout)
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		return fmt.Errorf("the node agent at %s does not watch over the start of pod %s/%s, which may take a second longer: %w", socket, q.Namespace, q.Name, err)
	}
	return nil
}

func exchange(socket string, q agentRequest, timeout time.Duration) (a agentResponse, err error) {
	c, err := net.DialTimeout("unix", socket, timeout)
	if err != nil {
		return a, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return a, err
	}
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return a, err
	}
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, maxAgentLine)
	if !lines.Scan() {
		if err := lines.Err(); err != nil {
			return a, err
		}
		return a, errors.New("it closed the connection without an answer")
	}
	// An answer that says neither yes nor no is no answer.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(lines.Bytes(), &fields); err != nil {
		return a, fmt.Errorf("its answer: %w", err)
	}
	if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
		return a, fmt.Errorf("its answer: %w", err)
	}
	if _, said := fields["redirect"]; !said && a.Error == "" {
		return a, errors.New(`its answer has neither "redirect" nor "error"`)
	}
	return a, nil
}
