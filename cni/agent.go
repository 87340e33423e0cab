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

// The node agent is asked only by a plugin whose container runtime passes no annotations. The protocol is one line of JSON each way over a
// unix stream socket:
//
//	-> {"namespace":"shop","name":"cart-1","uid":"...","containerID":"...","netns":"/run/netns/..."}
//	<- {"redirect":"{\"mode\":\"REDIRECT\",...}"}   injected: the value of the pod's weft.dev/redirect annotation
//	<- {"redirect":null}                             known, and not injected
//	<- {"error":"pod shop/cart-1 is unknown to ..."} not known: ADD fails and kubelet tries again
//
// The agent closes the connection after its line. Fields that either side does not know are ignored.
type agentRequest struct {
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	UID         string `json:"uid"`
	ContainerID string `json:"containerID"`
	NetNS       string `json:"netns"`
}

type agentResponse struct {
	Redirect *string `json:"redirect"`
	Error    string  `json:"error"`
}

// agentTimeout is for the whole exchange. The agent answers from memory, or waits a little for a pod that its watch has not seen yet.
const agentTimeout = 5 * time.Second

// maxAgentLine is more than the API server allows all annotations of a pod to have together (256 KiB), as JSON in JSON.
const maxAgentLine = 1 << 20

// askAgent gives the value of the pod's redirect annotation. Any doubt is an error, so that the ADD fails.
func askAgent(socket string, q agentRequest) (text string, injected bool, err error) {
	a, err := exchange(socket, q)
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

func exchange(socket string, q agentRequest) (a agentResponse, err error) {
	c, err := net.DialTimeout("unix", socket, agentTimeout)
	if err != nil {
		return a, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(agentTimeout)); err != nil {
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
