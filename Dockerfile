# The programs in an image without a shell; they run as an unprivileged user and
# write nothing. `writer dev` starts servers and is not for containers.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /out/ ./writer ./projector

FROM scratch
USER 65532:65532
COPY --from=build /out/ /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/writer"]
CMD ["serve", "--addr=:8080", "--admin-addr=:9080"]
