package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

const (
	// maxLogRequests is how many requests for logs are answered at a time.
	maxLogRequests = 64
	// batchLines, batchBytes and batchWait bound what is sent at once.
	batchLines = 256
	batchBytes = 256 << 10
	batchWait  = 100 * time.Millisecond
)

// streamPlatform is the stream of what the platform itself has to say between the lines of a workload.
const streamPlatform = "platform"

// answerLogRequest sends the logs of a request, or why it does not. The server ends a follow by breaking the
// stream.
func (a *Agent) answerLogRequest(ctx context.Context, req *pinnacev1.LogRequest) {
	send := a.copyLogs
	select {
	case a.logSlots <- struct{}{}:
		defer func() { <-a.logSlots }()
	default:
		send = a.refuseLogs
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := a.Server.SendLogs(ctx)
	// The first message names the request, also when there is nothing to send.
	err := stream.Send(&pinnacev1.SendLogsRequest{Request: req.Id})
	if err == nil {
		err = send(ctx, req, func(lines []*pinnacev1.StreamLogsResponse) error {
			return stream.Send(&pinnacev1.SendLogsRequest{Request: req.Id, Lines: lines})
		})
	}
	if _, closeErr := stream.CloseAndReceive(); err == nil {
		err = closeErr
	}
	if err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		a.Log.Debug("send logs", "instance", req.Instance, "err", err)
	}
}

// refuseLogs says that too many are reading.
func (a *Agent) refuseLogs(_ context.Context, req *pinnacev1.LogRequest, send func([]*pinnacev1.StreamLogsResponse) error) error {
	text := fmt.Sprintf("host %s answers %d requests for logs already; end one of them and try again", a.Host.Id, maxLogRequests)
	return send([]*pinnacev1.StreamLogsResponse{{
		Instance: req.Instance, Stream: streamPlatform, At: timestamppb.Now(), Line: []byte(text),
	}})
}

// copyLogs reads the logs of a request and sends them in batches.
func (a *Agent) copyLogs(ctx context.Context, req *pinnacev1.LogRequest, send func([]*pinnacev1.StreamLogsResponse) error) error {
	lines := make(chan *pinnacev1.StreamLogsResponse, batchLines)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read := make(chan error, 1)
	since := int64(math.MinInt64)
	if req.Since != nil {
		since = req.Since.AsTime().UnixNano()
	}
	go func() {
		defer close(lines)
		read <- a.logs.read(ctx, req.Instance, int(req.Tail), req.Follow, func(r logRecord) error {
			if r.Time < since {
				return nil
			}
			select {
			case lines <- wireLine(req.Instance, r):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	err := sendBatches(lines, a.timing.logBeat, send)
	cancel()
	return errors.Join(err, <-read)
}

// sendBatches sends what comes through lines until it is closed: what is there at once, together. Without lines
// it sends an empty batch now and then, which finds out whether somebody still reads.
func sendBatches(lines <-chan *pinnacev1.StreamLogsResponse, every time.Duration, send func([]*pinnacev1.StreamLogsResponse) error) error {
	beat := time.NewTicker(every)
	defer beat.Stop()
	for {
		var batch []*pinnacev1.StreamLogsResponse
		select {
		case line, ok := <-lines:
			if !ok {
				return nil
			}
			batch = collect(line, lines)
		case <-beat.C:
		}
		if err := send(batch); err != nil {
			return err
		}
	}
}

// collect waits a little for lines that come with the first one.
func collect(first *pinnacev1.StreamLogsResponse, lines <-chan *pinnacev1.StreamLogsResponse) []*pinnacev1.StreamLogsResponse {
	batch := []*pinnacev1.StreamLogsResponse{first}
	late := time.NewTimer(batchWait)
	defer late.Stop()
	for bytes := len(first.Line); len(batch) < batchLines && bytes < batchBytes; {
		select {
		case line, ok := <-lines:
			if !ok {
				return batch
			}
			batch = append(batch, line)
			bytes += len(line.Line)
		case <-late.C:
			return batch
		}
	}
	return batch
}

func wireLine(instance string, r logRecord) *pinnacev1.StreamLogsResponse {
	line := &pinnacev1.StreamLogsResponse{
		Instance: instance, Attempt: r.Attempt, Seq: r.Seq, Stream: r.Stream,
		At: timestamppb.New(time.Unix(0, r.Time)), Line: r.Data,
	}
	if r.Dropped > 0 {
		line.Stream = streamPlatform
		line.Line = fmt.Appendf(nil, "%d lines were lost here: they came faster than they could be kept", r.Dropped)
	}
	return line
}
