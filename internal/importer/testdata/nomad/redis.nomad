job "cache" {
  datacenters = ["*"]
  meta {
    owner = "platform"
  }
  group "cache" {
    network {
      port "db" {
        static = 6379
      }
    }
    volume "data" {
      type   = "host"
      source = "redis"
    }
    task "redis" {
      driver = "docker"
      config {
        image = "redis:7"
        ports = ["db"]
        command = "redis-server"
        args = ["--appendonly", "yes", "--maxmemory", "${attr.memory.totalbytes}"]
      }
      volume_mount {
        volume      = "data"
        destination = "/data"
      }
      service {
        name = "redis"
        port = "db"
        check {
          type     = "script"
          command  = "redis-cli"
          args     = ["ping"]
          interval = "500ms"
          timeout  = "2s"
        }
      }
    }
  }
}
