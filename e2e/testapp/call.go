package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Result is what one call saw. The e2e package decodes it.
type Result struct {
	Status  int                 `json:"status"`            // HTTP status; for gRPC the code; 0 when nothing answered
	Version string              `json:"version,omitempty"` // of the instance that answered
	Pod     string              `json:"pod,omitempty"`
	Millis  float64             `json:"ms"`
	Headers map[string][]string `json:"headers,omitempty"` // of the response
	Body    string              `json:"body,omitempty"`
	Error   string              `json:"error,omitempty"`

	number int // 0 for the first
}

type headerFlags http.Header

func (h headerFlags) String() string { return "" }

func (h headerFlags) Set(s string) error {
	k, v, ok := strings.Cut(s, ":")
	if !ok {
		return fmt.Errorf("a header is NAME: VALUE, not %q", s)
	}
	http.Header(h).Add(strings.TrimSpace(k), strings.TrimSpace(v))
	return nil
}

type caller struct {
	method, body string
	alpn         string
	header       http.Header
	timeout      time.Duration
	http         *http.Client
	url          string
}

// call makes n requests with c at a time, at most rate a second, for at most the given time, and prints
// a JSON array of Results in the order in which they were started. The URL's scheme chooses the
// protocol: http, https, h2c, ws, grpc, talk (a gRPC stream in both directions), tcp (a line is sent), banner (the server
// speaks first), tls (the server's certificates come back as PEM; -alpn offers protocols). {n} in the URL and the
// headers is the number of the request. It ends with an error only for wrong arguments, and with -fail when a request failed.
func call(args []string) error {
	flags := flag.NewFlagSet("call", flag.ContinueOnError)
	header := http.Header{}
	n := flags.Int("n", 1, "requests")
	c := flags.Int("c", 1, "at a time")
	perSecond := flags.Float64("rate", 0, "requests a second at most (0: no limit)")
	until := flags.Duration("for", 0, "go on for this long instead of -n requests")
	c1 := caller{header: header}
	flags.StringVar(&c1.method, "X", http.MethodGet, "method")
	flags.StringVar(&c1.body, "d", "", "body, or the line for tcp")
	size := flags.Int("size", 0, "length of a made-up body in `BYTES`, instead of -d")
	flags.DurationVar(&c1.timeout, "timeout", 15*time.Second, "of one request")
	flags.StringVar(&c1.alpn, "alpn", "", "ALPN protocols offered by tls, with commas")
	newConn := flags.Bool("no-keepalive", false, "a new connection for each request")
	fail := flags.Bool("fail", false, "end with status 1 when a request failed or was answered with 400 or more")
	connect := flags.String("connect", "", "`HOST:PORT` to connect to instead of the URL's")
	cacert := flags.String("cacert", "", "verify servers against this `PEM`; without it https trusts everybody")
	lean := flags.Bool("lean", false, "leave out headers and body of answers with status 200")
	flags.Var(headerFlags(header), "H", "request header `NAME: VALUE` (repeatable; Host too)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("call wants one URL")
	}
	c1.url = flags.Arg(0)
	if *size > 0 {
		c1.body = strings.Repeat("x", *size)
	}
	config := &tls.Config{InsecureSkipVerify: true}
	if *cacert != "" {
		config = &tls.Config{RootCAs: x509.NewCertPool()}
		if !config.RootCAs.AppendCertsFromPEM([]byte(*cacert)) {
			return fmt.Errorf("-cacert: no certificate in it")
		}
	}
	dial := (&net.Dialer{}).DialContext
	if *connect != "" {
		dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, *connect)
		}
	}
	protocols := new(http.Protocols)
	if strings.HasPrefix(c1.url, "h2c:") {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
		protocols.SetHTTP2(true)
	}
	c1.http = &http.Client{
		Transport: &http.Transport{
			Protocols: protocols, DisableKeepAlives: *newConn, MaxIdleConnsPerHost: *c, DisableCompression: true,
			TLSClientConfig: config, DialContext: dial,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}

	limit := rate.Inf
	if *perSecond > 0 {
		limit = rate.Limit(*perSecond)
	}
	pace := rate.NewLimiter(limit, 1)
	var results []*Result
	var wg sync.WaitGroup
	var mu sync.Mutex
	start := time.Now()
	next := func() *Result {
		mu.Lock()
		defer mu.Unlock()
		if (*until > 0 && time.Since(start) > *until) || (*until == 0 && len(results) == *n) {
			return nil
		}
		if err := pace.Wait(context.Background()); err != nil {
			return nil // the limiter refuses nothing: burst is 1
		}
		r := &Result{number: len(results)}
		results = append(results, r)
		return r
	}
	for range *c {
		wg.Go(func() {
			for r := next(); r != nil; r = next() {
				begin := time.Now()
				if err := c1.numbered(r.number).one(r); err != nil {
					r.Error = err.Error()
				}
				r.Millis = float64(time.Since(begin).Microseconds()) / 1000
				if *lean && r.Error == "" && (r.Status == http.StatusOK || strings.HasPrefix(c1.url, "grpc:")) {
					r.Headers, r.Body = nil, ""
				}
			}
		})
	}
	wg.Wait()
	failed := 0
	for _, r := range results {
		if r.Error != "" || r.Status >= http.StatusBadRequest {
			failed++
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		return err
	}
	if *fail && failed > 0 {
		return fmt.Errorf("%d of %d requests failed", failed, len(results))
	}
	return nil
}

// numbered is c for one of many requests.
func (c *caller) numbered(n int) *caller {
	const mark = "{n}"
	one := *c
	one.url = strings.ReplaceAll(c.url, mark, strconv.Itoa(n))
	one.header = c.header.Clone()
	for _, values := range one.header {
		for i, v := range values {
			values[i] = strings.ReplaceAll(v, mark, strconv.Itoa(n))
		}
	}
	return &one
}

func (c *caller) one(r *Result) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	scheme, rest, _ := strings.Cut(c.url, "://")
	switch scheme {
	case "http", "https":
		return c.web(ctx, r, c.url)
	case "h2c":
		return c.web(ctx, r, "http://"+rest)
	case "ws":
		return c.socket(ctx, r)
	case "grpc":
		return c.rpc(ctx, r, rest, c.check)
	case "talk":
		return c.rpc(ctx, r, rest, c.talk)
	case "tls":
		return c.handshake(ctx, r, rest)
	case "tcp", "banner":
		return c.line(ctx, r, rest, scheme == "banner")
	}
	return fmt.Errorf("unknown scheme %q", scheme)
}

func (c *caller) web(ctx context.Context, r *Result, target string) error {
	req, err := http.NewRequestWithContext(ctx, c.method, target, strings.NewReader(c.body))
	if err != nil {
		return err
	}
	req.Header = c.header.Clone()
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	r.Status, r.Headers, r.Body = resp.StatusCode, resp.Header, string(body)
	var a answer
	if json.Unmarshal(body, &a) == nil {
		r.Version, r.Pod = a.Version, a.Pod
	}
	return err
}

func (c *caller) socket(ctx context.Context, r *Result) error {
	conn, resp, err := websocket.Dial(ctx, c.url, &websocket.DialOptions{HTTPHeader: c.header})
	if resp != nil {
		r.Status, r.Headers = resp.StatusCode, resp.Header
	}
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageText, []byte(c.body)); err != nil {
		return err
	}
	_, msg, err := conn.Read(ctx)
	if err != nil {
		return err
	}
	r.Body = string(msg)
	r.Version, _, _ = strings.Cut(r.Body, " ")
	return conn.Close(websocket.StatusNormalClosure, "")
}

// rpc makes one gRPC call over a connection of its own.
func (c *caller) rpc(ctx context.Context, r *Result, target string, call func(context.Context, *grpc.ClientConn) (string, metadata.MD, error)) error {
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimSuffix(target, "/"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig())
	if err != nil {
		return err
	}
	defer conn.Close()
	for k, vs := range c.header {
		for _, v := range vs {
			ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(k), v)
		}
	}
	body, header, err := call(ctx, conn)
	r.Headers = header
	if err != nil {
		r.Error = err.Error() // "rpc error: code = Unavailable desc = ..."
		return nil
	}
	r.Body = body
	if v := header.Get("x-app-version"); len(v) > 0 {
		r.Version = v[0]
	}
	if v := header.Get("x-app-pod"); len(v) > 0 {
		r.Pod = v[0]
	}
	return nil
}

func (c *caller) check(ctx context.Context, conn *grpc.ClientConn) (string, metadata.MD, error) {
	var header metadata.MD
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header))
	return resp.GetStatus().String(), header, err
}

// talk sends a word three times, and waits for the answer to each.
func (c *caller) talk(ctx context.Context, conn *grpc.ClientConn) (string, metadata.MD, error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/weft.test.Echo/Talk")
	if err != nil {
		return "", nil, err
	}
	var said []string
	for range 3 {
		if err := stream.SendMsg(wrapperspb.String(c.body)); err != nil && !errors.Is(err, io.EOF) { // EOF: RecvMsg knows why
			return "", nil, err
		}
		var word wrapperspb.StringValue
		if err := stream.RecvMsg(&word); err != nil {
			return "", nil, err
		}
		said = append(said, word.Value)
	}
	if err := stream.CloseSend(); err != nil {
		return "", nil, err
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
		return "", nil, fmt.Errorf("the stream did not end: %w", err)
	}
	header, err := stream.Header()
	return strings.Join(said, ","), header, err
}

func (c *caller) handshake(ctx context.Context, r *Result, target string) error {
	config := &tls.Config{InsecureSkipVerify: true} // the caller verifies what comes back
	if c.alpn != "" {
		config.NextProtos = strings.Split(c.alpn, ",")
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", strings.TrimSuffix(target, "/"))
	if err != nil {
		return err
	}
	defer conn.Close()
	var chain bytes.Buffer
	for _, cert := range conn.(*tls.Conn).ConnectionState().PeerCertificates {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			return err
		}
	}
	r.Body = chain.String()
	return nil
}

func (c *caller) line(ctx context.Context, r *Result, target string, banner bool) error {
	u, err := url.Parse("tcp://" + target)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	var got bytes.Buffer
	if banner {
		line, err := in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("no banner: %w", err)
		}
		got.WriteString(line)
	}
	if c.body != "" {
		if _, err := fmt.Fprintln(conn, c.body); err != nil {
			return err
		}
		line, err := in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("no echo: %w", err)
		}
		got.WriteString(line)
	}
	r.Body = got.String()
	r.Version, _, _ = strings.Cut(r.Body, " ")
	return nil
}
